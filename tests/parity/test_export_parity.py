"""From a checkpoint of somebody else's to the runtime: the embeddings are those of the model that was saved.

The other side is transformers' `CLIPModel` or a model of PyTorch's own layers, never edgeclip's towers. Bounds: cosine
0.9999 at fp32 and 0.999 at fp16, on the same pixels and ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.export.pipeline import export, plan
from edgeclip.export.source import open_source
from edgeclip.manifest import Precision
from edgeclip.outcome import raise_if_failed
from tests import checkpoints, tiny

BOUND: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999}
TEXTS = ["a photo of a cat", "the photo and the cat", "", "in the end it is a cat sitting on the phone"]
Rows = NDArray[np.float32]
Encoder = Callable[[torch.Tensor], torch.Tensor]


def check(output: Path, size: int, encode_image: Encoder, encode_text: Encoder) -> None:
    """Every artifact of the bundle against the model that the checkpoint was written from."""
    made = {artifact.precision for artifact in Bundle.open(output).artifacts()}
    assert made
    coarse = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    pixels = coarse.repeat(size // 5 + 1, axis=1).repeat(size // 5 + 1, axis=2)[:, :size, :size]
    pixels = np.ascontiguousarray(pixels)
    for backend in ("onnxruntime", "openvino"):
        for precision in made:
            bound = BOUND[precision]
            with edgeclip.load(output, backend=backend, precision=precision) as model:
                ids = model.tokenize(TEXTS)
                images = cosines(model.encode_pixels(pixels), encode_image(normalised(pixels)))
                texts = cosines(model.encode_ids(ids), encode_text(torch.from_numpy(ids).long()))
            assert min(images.min(), texts.min()) >= bound, (backend, precision, images, texts)


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, S, S, 3] to what a PyTorch CLIP takes, [B, 3, S, S]."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (checkpoints.MEAN, checkpoints.STD))
    return ((x - mean) / std).float()


def cosines(ours: Rows, theirs: torch.Tensor) -> NDArray[np.float64]:
    other = theirs.double().numpy()
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    assert (other @ other.T)[np.triu_indices(len(other), 1)].max() < 0.9995, "the inputs do not tell models apart"
    return np.asarray((ours.astype(np.float64) * other).sum(axis=1))


def make(folder: Path, output: Path, precisions: Sequence[Precision] = tuple(BOUND), **options: Any) -> None:
    source = open_source(folder, random_weights=True, **options)
    raise_if_failed(export(source, output, plan(["onnx", "openvino"], precisions, None)))


@pytest.mark.parametrize(
    "options", [{}, {"quick_gelu": False}, {"eos_id": 2}], ids=["quick-gelu", "gelu", "legacy-end"]
)
@torch.no_grad()
def test_a_huggingface_model_of_odd_sizes(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = tiny.checkpoint(tmp_path / "clip", **options)
    make(tmp_path / "clip", tmp_path / "b.edgeclip", ["fp32"] if options else tuple(BOUND))
    check(
        tmp_path / "b.edgeclip", 60,
        lambda x: theirs.get_image_features(x).pooler_output,
        lambda ids: theirs.get_text_features(ids).pooler_output,
    )  # fmt: skip


@pytest.mark.nightly
@torch.no_grad()
def test_a_huggingface_vit_b_32(bpe_path: Path, tmp_path: Path) -> None:
    theirs = checkpoints.hf_clip(tmp_path / "clip", "vit-b-32")
    make(tmp_path / "clip", tmp_path / "b.edgeclip", tokenizer=bpe_path)
    check(
        tmp_path / "b.edgeclip", 224,
        lambda x: theirs.get_image_features(x).pooler_output,
        lambda ids: theirs.get_text_features(ids).pooler_output,
    )  # fmt: skip


@pytest.mark.nightly
@torch.no_grad()
def test_an_openclip_rn50(bpe_path: Path, tmp_path: Path) -> None:
    theirs = checkpoints.openclip_dir(tmp_path / "clip", "rn50", quick_gelu=True)
    make(tmp_path / "clip", tmp_path / "b.edgeclip", tokenizer=bpe_path)
    check(tmp_path / "b.edgeclip", 224, theirs, theirs.encode_text)


@pytest.mark.parametrize(
    "quick_gelu", [pytest.param(True, id="quick-gelu", marks=pytest.mark.nightly), pytest.param(False, id="gelu")]
)
@torch.no_grad()
def test_an_openclip_vit(quick_gelu: bool, tmp_path: Path) -> None:
    theirs = checkpoints.openclip_dir(tmp_path / "clip", "speaking-vit", quick_gelu=quick_gelu)
    precisions: list[Precision] = ["fp32"] if quick_gelu else ["fp32", "fp16"]
    make(tmp_path / "clip", tmp_path / "b.edgeclip", precisions, tokenizer=tiny.tokenizer_file(tmp_path))
    check(tmp_path / "b.edgeclip", 64, theirs, theirs.encode_text)


@torch.no_grad()
def test_an_openclip_resnet(tmp_path: Path) -> None:
    theirs = checkpoints.openclip_dir(tmp_path / "clip", "speaking-resnet", quick_gelu=True)
    make(tmp_path / "clip", tmp_path / "b.edgeclip", tokenizer=tiny.tokenizer_file(tmp_path))
    check(tmp_path / "b.edgeclip", 64, theirs, theirs.encode_text)


@torch.no_grad()
def test_an_openai_archive(tmp_path: Path) -> None:
    theirs = checkpoints.openai_archive(tmp_path / "clip.pt", "speaking-vit")
    make(tmp_path / "clip.pt", tmp_path / "b.edgeclip", ["fp32"], tokenizer=tiny.tokenizer_file(tmp_path))
    check(tmp_path / "b.edgeclip", 64, theirs, theirs.encode_text)
