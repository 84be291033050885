"""What is embedded: captions, and a folder's pictures or, where none is given, pictures that cost what photographs do.

Generated pictures are noise with the spectrum of natural scenes, amplitudes falling as 1/f, so that a JPEG of one has a
photograph's size and takes a photograph's time to decode. They need no data and no library beside NumPy and Pillow.

Source of the spectrum: D. J. Field, "Relations between the statistics of natural images and the response properties of
cortical cells" (1987).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeclip.benchmarks.photographs import QUALITY, SIZES, digest
from edgeclip.benchmarks.prepare import CAPTIONS
from edgeclip.benchmarks.record import Inputs
from edgeclip.cli import sources
from edgeclip.images import decoding, open_image

MAX_IMAGES = 256
GENERATED = 8
SIZE = SIZES[0.3]
NAME = f"generated, {SIZE[0]} x {SIZE[1]}"
SEED = 0
_CONTRAST, _COLOUR = 52.0, 14.0
"""Standard deviations of brightness and of the channels around it, in 1/255."""
_VERSION = 1
"""Of the recipe."""


@dataclass(frozen=True)
class Pictures:
    """Files to embed, and what the record says of them."""

    paths: tuple[Path, ...]
    described: Inputs


def chosen(folder: Path) -> Pictures:
    """The first `MAX_IMAGES` pictures of a folder, by name.

    Raises:
        InputError: there is no such folder, it has none, or one that cannot be read.
    """
    paths = [Path(name) for name in sources.images([str(folder)])[:MAX_IMAGES]]
    for path in paths:
        with decoding(str(path)):
            open_image(path, str(path)).load()
    return Pictures(tuple(paths), _described(folder.name, digest(paths), paths))


def generated(folder: Path, count: int = GENERATED) -> Pictures:
    """Write pictures to a folder that is ours.

    Equal recipes count as equal inputs: the bytes of a JPEG differ from one version of its encoder to the next.
    """
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:02d}.jpg")
        scene(number).save(paths[-1], quality=QUALITY)
    recipe = f"{_VERSION} {SIZE} {QUALITY} {_CONTRAST} {_COLOUR} {SEED} {count}"
    return Pictures(tuple(paths), _described(NAME, f"sha256:{hashlib.sha256(recipe.encode()).hexdigest()}", paths))


def scene(number: int) -> Image.Image:
    """One picture, RGB."""
    rng = np.random.default_rng([SEED, number])
    width, height = SIZE
    grey = _noise(rng, height, width)
    channels = [128 + _CONTRAST * grey + _COLOUR * _noise(rng, height, width) for _ in range(3)]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[H, W] of mean 0 and standard deviation 1, whose amplitudes fall as 1/f."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
    found = np.fft.irfft2(spectrum, (height, width))
    return np.asarray(found / found.std())


def _described(name: str, sha256: str, paths: Sequence[Path]) -> Inputs:
    return Inputs(name=name, sha256=sha256, images=len(paths), texts=len(CAPTIONS))
