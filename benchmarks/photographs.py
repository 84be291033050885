"""JPEG files that cost what photographs cost, at any size: from the two photographs that scikit-learn carries.

An enlarged photograph alone would be smooth, and its JPEG small and quickly decoded. Fine structure of the original
size is therefore laid over it, and the noise of a sensor, so that bytes per pixel are those of a camera.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgeclip.errors import UsageError

NAMES = ("china.jpg", "flower.jpg")
QUALITY = 90
SIZES = {0.3: (640, 480), 2.0: (1632, 1224), 12.0: (4000, 3000)}
"""Megapixels -> width and height of a landscape."""
MIX = {0.3: 0.70, 2.0: 0.25, 12.0: 0.05}
"""A folder's share of each size."""
_DETAIL = 0.7
_NOISE = 2.0
"""Standard deviation of the noise, in 1/255."""
_VERSION = 1
"""Of the recipe: another one makes the files anew."""


@dataclass(frozen=True)
class Shot:
    """One photograph that is to be made; equal ones make equal files."""

    name: str
    megapixels: float
    portrait: bool
    seed: int


def plan_folder(count: int, seed: int = 0) -> list[Shot]:
    """A folder with the sizes of `MIX`, in random order."""
    sizes = [size for size, share in MIX.items() for _ in range(round(share * count))]
    rng = np.random.default_rng(seed)
    rng.shuffle(sizes)
    return [
        Shot(f"{i:04d}.jpg", size, portrait=bool(rng.integers(2)), seed=1000 * seed + i)
        for i, size in enumerate(sizes[:count])
    ]


def plan_size(megapixels: float, count: int = 5) -> list[Shot]:
    """A few photographs of one size, landscape and portrait; an odd number, lest a median lie between the two."""
    return [Shot(f"{megapixels:g}mp-{i}.jpg", megapixels, portrait=i % 2 == 1, seed=i) for i in range(count)]


def make(folder: Path, shots: Sequence[Shot]) -> list[Path]:
    """Write the photographs that are not there already; returns their paths in order.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    paths = [folder / shot.name for shot in shots]
    recipe = json.dumps([_VERSION, QUALITY, *map(str, shots)])
    done = folder / "recipe.json"
    if done.is_file() and done.read_text() == recipe and all(path.is_file() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    for path, shot in zip(paths, shots, strict=True):
        take(shot).save(path, quality=QUALITY)
    done.write_text(recipe)
    return paths


def take(shot: Shot) -> Image.Image:
    """Make a photograph, RGB."""
    width, height = SIZES[shot.megapixels]
    size = (height, width) if shot.portrait else (width, height)
    rng = np.random.default_rng(shot.seed)
    original = _originals()[shot.seed % len(NAMES)]
    if rng.integers(2):
        original = ImageOps.mirror(original)
    scene = np.asarray(_framed(original, size, rng), np.float32)
    grain = _tiled(_detail(original), size, rng)
    noise = rng.standard_normal(scene.shape[:2], np.float32)[..., None] * _NOISE
    return Image.fromarray(np.clip(scene + grain + noise, 0, 255).astype(np.uint8))


def digest(paths: Sequence[Path]) -> str:
    """One sha256 for all files and their order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{whole.hexdigest()}"


@cache
def _originals() -> tuple[Image.Image, ...]:
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UsageError("the benchmark's photographs come from scikit-learn", hint="pip install scikit-learn")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "images"
    return tuple(Image.open(folder / name).convert("RGB") for name in NAMES)


def _framed(original: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random part, of the shape of `size`, enlarged to it."""
    width, height = original.size
    scale = min(width / size[0], height / size[1]) * rng.uniform(0.6, 1.0)
    part = (size[0] * scale, size[1] * scale)
    left, top = rng.uniform(0, width - part[0]), rng.uniform(0, height - part[1])
    return original.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + part[0], top + part[1]))


def _detail(original: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What is lost when a photograph is made smaller and larger again; grey, [H, W, 1], around 0."""
    grey = original.convert("L")
    coarse = grey.resize((grey.width // 4, grey.height // 4), Image.Resampling.BICUBIC)
    smooth = coarse.resize(grey.size, Image.Resampling.BICUBIC)
    return (np.asarray(grey, np.float32) - np.asarray(smooth, np.float32))[..., None] * np.float32(_DETAIL)


def _tiled(
    detail: np.ndarray[tuple[int, ...], np.dtype[np.float32]], size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Cover [height, width] with mirrored copies, from a random offset."""
    both = np.concatenate([detail, detail[:, ::-1]], axis=1)
    tile = np.concatenate([both, both[::-1]], axis=0)
    rows = (np.arange(size[1]) + rng.integers(tile.shape[0])) % tile.shape[0]
    columns = (np.arange(size[0]) + rng.integers(tile.shape[1])) % tile.shape[1]
    cover: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = tile[rows[:, None], columns[None, :]]
    return cover
