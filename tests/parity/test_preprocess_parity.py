"""Pixels against two references: plain Pillow (resize in full, then crop) and transformers' CLIP image processor."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess

SIDE = 224
SETS = ("flickr8k", "pacs_photo", "pacs_cartoon", "pacs_sketch", "cifar10", "tinyimagenet")
IMAGES_PER_SET = 20
ODD_SIZES = [
    (1, 1), (1, 2), (3, 2), (7, 300), (17, 40), (223, 225), (224, 224), (225, 224), (300, 1500), (449, 447),
    (500, 375), (333, 501), (640, 427), (97, 1201), (1, 900), (1000, 3), (2000, 223), (769, 1023),
]  # fmt: skip


def spec_of(size: int = SIDE, *, interpolation: str = "bicubic", crop: str = "round") -> Preprocess:
    return Preprocess(
        size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=interpolation,  # type: ignore[arg-type]
        crop=crop,  # type: ignore[arg-type]
    )


def pillow(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """The whole image resized, rows first as every Pillow before 13 did, and cut afterwards."""
    side, filter_ = spec.size, Image.Resampling[spec.interpolation.upper()]
    width, height = image.size
    short = min(width, height)
    wide, high = (side if side_ == short else int(side * side_ / short) for side_ in (width, height))
    resized = image.resize((wide, height), filter_).resize((wide, high), filter_)
    left, top = (wide - side) / 2, (high - side) / 2
    left, top = (int(left), int(top)) if spec.crop == "floor" else (round(left), round(top))
    return np.asarray(resized.crop((left, top, left + side, top + side)), np.int64)


def worst(pixels: np.ndarray, reference: np.ndarray) -> int:
    return int(np.abs(pixels.astype(np.int64) - reference).max())


def members(data_dir: Path, name: str) -> Iterator[bytes]:
    with tarfile.open(data_dir / "eval" / f"wds_{name}" / "test" / "0.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith((".jpg", ".png", ".webp")):
                yield file.read()


@pytest.fixture(scope="session")
def photographs(data_dir: Path) -> list[bytes]:
    """120 encoded images of six kinds."""
    return [data for name in SETS for data, _ in zip(members(data_dir, name), range(IMAGES_PER_SET), strict=False)]


def large(data: bytes, width: int, height: int) -> bytes:
    """A photograph-like JPEG of any size: enlarged, with the grain of a sensor."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(width).normal(0, 4, (height, width, 1))
    file = io.BytesIO()
    grainy = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    grainy.save(file, "JPEG", quality=90)
    return file.getvalue()


# --- plain Pillow


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_noise_of_odd_size_equals_pillow(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8))
    for spec in (spec_of(), spec_of(33, crop="floor"), spec_of(64, interpolation="bilinear")):
        assert worst(preprocess(image, spec), pillow(image, spec)) <= 1


def test_real_images_equal_pillow(photographs: list[bytes]) -> None:
    assert len(photographs) >= 100
    for data in photographs:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for spec in (spec_of(), spec_of(64, interpolation="bilinear")):
            assert worst(preprocess(data, spec, scaled_decoding=False), pillow(image, spec)) <= 1


# --- transformers


@pytest.fixture(scope="session")
def processor() -> object:
    clip = pytest.importorskip("transformers.models.clip", reason="transformers is not installed")
    return clip.CLIPImageProcessorPil(do_rescale=False, do_normalize=False)


def reference(processor: object, image: Image.Image) -> np.ndarray:
    pixels = processor(image, return_tensors="np")["pixel_values"][0]  # type: ignore[operator]
    return np.asarray(pixels, np.int64).transpose(1, 2, 0)


def test_real_images_equal_transformers(processor: object, photographs: list[bytes]) -> None:
    for data in photographs:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert worst(preprocess(data, spec_of(crop="floor"), scaled_decoding=False), reference(processor, image)) <= 1


@pytest.mark.parametrize("size", [(640, 427), (333, 501), (1001, 750), (225, 224)], ids=str)
def test_large_photographs_equal_transformers(
    processor: object, photographs: list[bytes], size: tuple[int, int]
) -> None:
    for data in photographs[:3]:
        encoded = large(data, *size)
        pixels = preprocess(encoded, spec_of(crop="floor"), scaled_decoding=False)
        assert worst(pixels, reference(processor, Image.open(io.BytesIO(encoded)))) <= 1


# --- scaled decoding of JPEG


@pytest.mark.parametrize("size", [(910, 913), (1001, 1999), (1600, 1200), (2016, 1512), (4032, 3024)], ids=str)
def test_scaled_decoding_stays_close(processor: object, photographs: list[bytes], size: tuple[int, int]) -> None:
    spec = spec_of(crop="floor")
    for data in photographs[:2] if max(size) > 4000 else photographs[:6]:
        encoded = large(data, *size)
        exact = reference(processor, Image.open(io.BytesIO(encoded)))
        difference = np.abs(preprocess(encoded, spec) - exact)
        assert difference.max() <= 3
        assert difference.mean() <= 0.5


def test_scaled_decoding_reads_less(photographs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """12 megapixels are decoded at a quarter of each side: still more than twice the 298x224 that the resize makes."""
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def spy(self: Image.Image, *args: object, **options: object) -> Image.Image:
        resized.append(self.size)
        return resize(self, *args, **options)  # type: ignore[arg-type]

    encoded = large(photographs[0], 4032, 3024)
    monkeypatch.setattr(Image.Image, "resize", spy)
    preprocess(encoded, spec_of())
    preprocess(encoded, spec_of(), scaled_decoding=False)
    assert resized[::2] == [(1008, 756), (4032, 3024)]


@pytest.mark.parametrize("size", [(895, 900), (448, 448), (3000, 447)], ids=str)
def test_small_sides_are_decoded_in_full(photographs: list[bytes], size: tuple[int, int]) -> None:
    """Half of the short side would be less than twice the target: both ways give the same bits."""
    encoded = large(photographs[0], *size)
    assert np.array_equal(preprocess(encoded, spec_of()), preprocess(encoded, spec_of(), scaled_decoding=False))
