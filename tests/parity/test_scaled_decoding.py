"""Scaled JPEG decoding changes pixels a little and embeddings hardly: cosine at least 0.9995 on photographs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

import edgeclip
from edgeclip.preprocess import preprocess

COUNT = 120


def photographs(data: Path, count: int) -> list[bytes]:
    """Real photographs, enlarged so that decoding at a quarter of their size comes into play, as JPEG files."""
    found: list[bytes] = []
    with tarfile.open(data / "eval" / "wds_flickr8k" / "test" / "0.tar") as tar:
        for member in tar:
            if len(found) == count:
                break
            if not member.name.endswith((".jpg", ".webp", ".png")):
                continue
            file = tar.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            out = io.BytesIO()
            image.resize((image.width * 7, image.height * 7), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
            found.append(out.getvalue())
    return found


def test_scaled_decoding_hardly_changes_embeddings(tiny_bundle: Path, data_dir: Path) -> None:
    files = photographs(data_dir, COUNT)
    assert len(files) == COUNT
    with edgeclip.load(tiny_bundle, tower="image") as model:
        spec = model.bundle.manifest.preprocess
        scaled = np.stack([preprocess(file, spec) for file in files])
        whole = np.stack([preprocess(file, spec, scaled_decoding=False) for file in files])
        a, b = model.encode_pixels(scaled), model.encode_pixels(whole)
    assert (scaled != whole).any(), "decoding was never scaled"
    assert (a @ a.T)[np.triu_indices(COUNT, 1)].min() < 0.99, "the model does not tell photographs apart"
    assert (a * b).sum(axis=1).min() >= 0.9995
