"""What tests of training with rounding share: a toy with convolutions, its checkpoint, and recipes that go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.models import Clip, RepVggConfig
from edgeclip.train.recipe import Recipe
from tests import tiny, training

TOWER = RepVggConfig(stem=8, widths=(16, 24), depths=(1, 2), strides=(2, 2), branches=("skip", "pointwise"))
CONFIG = msgspec.structs.replace(training.toy_config(), image=TOWER)
STEM = "image.stem.spatial.conv"
LAYERS = 5 + 13
"""With weights, of both towers."""


def trained(seed: int = 0) -> Clip:
    """With running statistics that are not those of the beginning."""
    torch.manual_seed(seed)
    clip = Clip(CONFIG).train()
    with torch.no_grad():
        for _ in range(20):
            clip.encode_image(torch.randn(16, 3, training.SIDE, training.SIDE))
    return clip.eval()


def changes(folder: Path, precision: str = "w4a16", **more: Any) -> dict[str, Any]:
    """Of the toy's recipe: it goes on from `before`, which is written, with itself as its teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = save_checkpoint(trained(), folder / "before", training.preprocess(), tiny.tokenizer_file(folder))
    return {
        "model__init_from": str(saved),
        "model__tokenizer": "",
        "distill__weights": {"cosine": 10.0},
        "distill__contrastive": 0.0,
        "optimizer__lr": 1e-3,
        "quantize__precision": precision,
        "quantize__observe_batches": 2,
        **more,
    }


def recipe(folder: Path, precision: str = "w4a16", **more: Any) -> Recipe:
    """The recipe decoded."""
    made = training.recipe(folder, **changes(folder, precision, **more))
    (folder / "toy.json").write_bytes(msgspec.json.encode(CONFIG))
    return made


def recipe_file(folder: Path, precision: str = "w4a16", **more: Any) -> Path:
    """The recipe as TOML."""
    path = training.recipe_file(folder, **changes(folder, precision, **more))
    (folder / "toy.json").write_bytes(msgspec.json.encode(CONFIG))
    return path
