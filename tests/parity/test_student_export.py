"""Small architectures: trained, saved, exported and run, the embeddings are those of the model in PyTorch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeclip
from edgeclip.export.pipeline import export, plan
from edgeclip.export.source import open_source
from edgeclip.outcome import raise_if_failed
from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.checkpoints.infer import openai_preprocess
from edgeclip.train.models import Clip, ClipConfig, RepVggConfig, load_config
from edgeclip.train.vocabulary import train_bpe

SIDE = 64
BOUND = 0.9999
TEXTS = ["a photo of a cat", "two dogs on a beach", "", "a sketch of the cat and the dogs by the sea at night"]
REPVGG = RepVggConfig(
    stem=8,
    widths=(16, 32),
    depths=(2, 2),
    strides=(2, 2),
    branches=("pointwise", "identity", "skip"),
    pool="attention",
    heads=2,
)


def configs() -> dict[str, ClipConfig]:
    small = load_config("edge-s")
    return {
        "edge-s": small,
        "edge-vit-s": load_config("edge-vit-s"),
        "every-branch": msgspec.structs.replace(small, name="every-branch", image=REPVGG),
    }


def trained(config: ClipConfig) -> Clip:
    """With the statistics of a few passes, as after training."""
    torch.manual_seed(0)
    clip = Clip(config).train()
    for norm in clip.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        for _ in range(20):
            clip.encode_image(torch.randn(16, 3, SIDE, SIDE))
    return clip.eval()


def normalised(pixels: np.ndarray) -> Tensor:
    """uint8 [B, S, S, 3] to what the tower takes."""
    spec = openai_preprocess(SIDE)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    return ((x - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)).float()


def cosines(ours: np.ndarray, theirs: Tensor) -> np.ndarray:
    other = torch.nn.functional.normalize(theirs.double(), dim=-1)
    assert (other @ other.T).fill_diagonal_(0).max() < 0.9995, "the inputs do not tell models apart"
    return (torch.from_numpy(ours).double() * other).sum(-1).numpy()


@torch.no_grad()
@pytest.mark.parametrize("name", configs())
def test_exported_embeddings_are_the_model_s(name: str, tmp_path: Path) -> None:
    clip = trained(configs()[name])
    (tmp_path / "tokenizer.json").write_bytes(train_bpe(TEXTS * 2, clip.config.text.vocab_size))
    save_checkpoint(clip, tmp_path / "c", openai_preprocess(SIDE), tmp_path / "tokenizer.json")
    source = open_source(tmp_path / "c", random_weights=True)
    raise_if_failed(export(source, tmp_path / "b.edgeclip", plan(["onnx", "openvino"], ["fp32"], None)))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[1] //= 3
    pixels[2, :, :32] = 255
    for backend in ("onnxruntime", "openvino"):
        with edgeclip.load(tmp_path / "b.edgeclip", backend=backend, precision="fp32") as model:
            ids = model.tokenize(TEXTS)
            images = cosines(model.encode_pixels(pixels), clip.encode_image(normalised(pixels)))
            texts = cosines(model.encode_ids(ids), clip.encode_text(torch.from_numpy(ids).long()))
        assert min(images.min(), texts.min()) >= BOUND, (backend, images, texts)
