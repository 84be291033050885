"""Any size, and any damage: pixels or a named error, never anything else."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeclip.errors import ImageDecodeError, ImageTooLargeError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess

MUTANTS = 1_000
MUTANTS_NIGHTLY = 20_000
SLOWEST_S = 2.0
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (
        "JPEG",
        {"quality": 90, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ),
    "progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "phone": ("MPO", {"save_all": True, "quality": 90}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {"save_all": True}),
}


def spec_of(size: int) -> Preprocess:
    return Preprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def seeds() -> list[bytes]:
    """One small valid file of each format; those that may hold several images hold two."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    images = [Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())]
    files = []
    for kind, options in FORMATS.values():
        mode = "RGBA" if kind in ("PNG", "WEBP") else "RGB"
        first, second = (image.convert(mode) for image in images)
        more = {"append_images": [second]} if "save_all" in options else {}
        file = io.BytesIO()
        first.save(file, kind, **options, **more)
        files.append(file.getvalue())
    return files


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four faults: bits and bytes changed, stretches cut, doubled or zeroed, the end missing."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged))
        until = min(len(damaged), at + rng.randint(1, 40))
        fault = rng.randrange(6)
        if fault == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif fault == 1:
            damaged[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif fault == 2:
            damaged[at:until] = bytes(until - at)
        elif fault == 3:
            damaged[at:at] = damaged[at:until]
        elif fault == 4 and until - at < len(damaged):
            del damaged[at:until]
        elif fault == 5 and at:
            del damaged[at:]
    return bytes(damaged)


def mutants(count: int) -> Iterator[bytes]:
    rng, files = random.Random(20_260_101), seeds()
    return (mutated(files[i % len(files)], rng) for i in range(count))


def survive(count: int) -> None:
    outcomes = {"pixels": 0, "refused": 0}
    for data in mutants(count):
        start = time.perf_counter()
        try:
            pixels = preprocess(data, spec_of(16))
        except (ImageDecodeError, ImageTooLargeError):
            outcomes["refused"] += 1
        else:
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
            outcomes["pixels"] += 1
        assert time.perf_counter() - start < SLOWEST_S
    assert min(outcomes.values()) > count // 20, f"the faults are too hard or too soft to tell anything: {outcomes}"


def test_seeds_are_valid() -> None:
    assert all(preprocess(data, spec_of(16)).any() for data in seeds())


# Damaged headers make Pillow warn about what it then reads all the same.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_give_pixels_or_an_image_error() -> None:
    survive(MUTANTS)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_many_damaged_files_give_pixels_or_an_image_error() -> None:
    survive(MUTANTS_NIGHTLY)


def test_damaged_files_with_warnings_as_errors() -> None:
    survive(MUTANTS // 5)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(width=st.integers(1, 500), height=st.integers(1, 500), size=st.integers(1, 64), seed=st.integers(0, 2**32 - 1))
def test_any_size_equals_resize_then_crop(width: int, height: int, size: int, seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    short = min(width, height)
    wide, high = int(size * width / short), int(size * height / short)
    bicubic = Image.Resampling.BICUBIC
    resized = image.resize((wide, height), bicubic).resize((wide, high), bicubic)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    reference = np.asarray(resized.crop((left, top, left + size, top + size)), np.int64)
    assert np.abs(preprocess(image, spec_of(size)) - reference).max() <= 1


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageDecodeError):
        preprocess(data, spec_of(8))
