"""Converted checkpoints compute what the libraries that wrote them compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeclip.train.checkpoints import build, read_checkpoint
from tests import checkpoints

ATOL = 1e-5


@pytest.fixture
def ids() -> Tensor:
    """Texts of different lengths: one with two ends, one padded with the end, one padded with 0."""
    rows = [[298, 5, 299, 8, 299, 3, 1], [298, 7, 7, 7, 7, 299, 299], [298, 299, 0, 0, 0, 0, 0]]
    return torch.tensor(rows)


def _pixels(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def _check(ours: Tensor, theirs: Tensor) -> None:
    """Equal, and not by being constant."""
    assert (theirs[0] - theirs[1]).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("options"),
    [{}, {"quick_gelu": False}, {"eos_id": 2}, {"eos_id": 7}, {"max_shard_size": "100KB"}],
    ids=["quick-gelu", "gelu", "legacy-end", "other-end", "sharded"],
)
@torch.no_grad()
def test_huggingface(options: dict[str, Any], ids: Tensor, tmp_path: Path) -> None:
    theirs = checkpoints.hf_clip(tmp_path, **options)
    ours = build(read_checkpoint(tmp_path))
    pixels = _pixels(60)
    _check(ours.encode_image(pixels), theirs.get_image_features(pixels).pooler_output)
    _check(ours.encode_text(ids), theirs.get_text_features(ids).pooler_output)
    image, text, scale = ours(pixels, ids)
    torch.testing.assert_close(scale * image @ text.T, theirs(ids, pixels).logits_per_image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("custom_text", [False, True], ids=["flat", "custom-text"])
@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quick-gelu"])
@pytest.mark.parametrize("arch", ["odd-vit", "resnet"])
@torch.no_grad()
def test_openclip(arch: str, quick_gelu: bool, custom_text: bool, ids: Tensor, tmp_path: Path) -> None:
    theirs = checkpoints.openclip_dir(tmp_path, arch, quick_gelu=quick_gelu, custom_text=custom_text)
    ours = build(read_checkpoint(tmp_path))
    pixels = _pixels(ours.config.image_size)
    _check(ours.encode_image(pixels), theirs(pixels))
    _check(ours.encode_text(ids), theirs.encode_text(ids))


@pytest.mark.parametrize("arch", ["vit", "resnet"])
@torch.no_grad()
def test_openai_archive(arch: str, ids: Tensor, tmp_path: Path) -> None:
    theirs = checkpoints.openai_archive(tmp_path / "model.pt", arch)
    ours = build(read_checkpoint(tmp_path / "model.pt"))
    _check(ours.encode_image(_pixels(64)), theirs(_pixels(64)))
    _check(ours.encode_text(ids), theirs.encode_text(ids))
