"""Checkpoints with random weights: like those of trained models in what rounding depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeclip.errors import ExportExistsError
from edgeclip.export.random_checkpoint import write_random_checkpoint
from edgeclip.export.source import open_source
from edgeclip.train.models.config import ClipConfig, ResNetConfig, TextConfig, VitConfig
from tests import tiny

SIZE = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64, "activation": "gelu"}
IMAGES = {
    "resnet": ResNetConfig(width=8, layers=(1, 1, 1, 1), heads=4),
    "vit": VitConfig(patch=16, **SIZE),  # type: ignore[arg-type]
}


def config(kind: str) -> ClipConfig:
    text = TextConfig(context_length=24, vocab_size=tiny.VOCAB_SIZE, **SIZE)  # type: ignore[arg-type]
    return ClipConfig(name=kind, embed_dim=16, image_size=32, image=IMAGES[kind], text=text)


@pytest.mark.parametrize("kind", IMAGES)
def test_it_reads_back_and_is_the_same_for_the_same_seed(kind: str, tmp_path: Path) -> None:
    tokenizer = str(tiny.tokenizer_file(tmp_path))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(tmp_path / name, config(kind), tokenizer=tokenizer, seed=seed)
    a, b, c = (open_source(tmp_path / name, random_weights=True) for name in "abc")
    assert a.model.name == kind and a.tokenizer_spec.context_length == 24
    assert a.provenance.source_sha256 == b.provenance.source_sha256 != c.provenance.source_sha256
    with pytest.raises(ExportExistsError):
        write_random_checkpoint(tmp_path / "a", config(kind), tokenizer=tokenizer)


def test_activations_of_a_resnet_stay_of_one_size(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "a", config("resnet"), tokenizer=str(tiny.tokenizer_file(tmp_path)))
    tower = open_source(tmp_path / "a", random_weights=True).clip.image
    stds = []
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            module.register_forward_hook(lambda _module, _inputs, output: stds.append(output.std().item()))
    with torch.no_grad():
        tower(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert len(stds) > 10
    assert min(stds) > 0.02 and max(stds) < 5
