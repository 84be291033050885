"""The calls that are timed in one process: the same inputs, in the same order, for every contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.benchmarks.prepare import CAPTIONS, Materials, captions
from edgeclip.benchmarks.results import AGAIN
from edgeclip.benchmarks.sides import MAIN, PEER, PEER_BF16, Sides
from edgeclip.preprocess import preprocess

PADDED = f"{PEER}, padded to 77"


class Contender:
    """A call, made with the next of its arguments each time."""

    def __init__(self, call: Callable[[Any], object], arguments: Sequence[Any]) -> None:
        self._call, self._arguments = call, arguments
        self._next = cycle(arguments)

    def __call__(self) -> object:
        return self._call(next(self._next))

    @property
    def distinct(self) -> int:
        """How many arguments there are."""
        return len(self._arguments)

    def again(self) -> Contender:
        """The same, from the first argument on."""
        return Contender(self._call, self._arguments)


Contenders = dict[str, Contender]


def image_encode(sides: Sides, materials: Materials, batch: int) -> Contenders:
    """Pixels that are ready -> embeddings."""
    paths = materials.folder[:batch]
    found = {PEER: Contender(sides.peer.encode_pixels, [sides.peer.pixels(paths)])}
    if half := sides.peer_bf16:
        found[PEER_BF16] = Contender(half.encode_pixels, [half.pixels(paths)])
    spec = sides.models[MAIN].bundle.manifest.preprocess
    pixels = np.stack([preprocess(path, spec) for path in paths])
    return found | _controlled({name: Contender(m.encode_pixels, [pixels]) for name, m in sides.models.items()})


def text_encode(sides: Sides, batch: int) -> Contenders:
    """Captions -> embeddings, tokenizing included; other captions each time."""
    texts = [captions(batch, first) for first in range(len(CAPTIONS))]
    found = {
        PEER: Contender(lambda some: sides.peer.encode_text(some, padding=True), texts),
        PADDED: Contender(lambda some: sides.peer.encode_text(some, padding="max_length"), texts),
    }
    return found | _controlled({name: Contender(m.encode_text, texts) for name, m in sides.models.items()})


def preprocessing(sides: Sides, materials: Materials, megapixels: float) -> Contenders:
    """A file -> pixels; one of a few files each time."""
    paths = materials.singles[megapixels]
    spec = sides.models[MAIN].bundle.manifest.preprocess
    ours = {"edgeclip": Contender(lambda path: preprocess(path, spec), paths)}
    return {PEER: Contender(lambda path: sides.peer.pixels([path]), paths)} | _controlled(ours)


def file_to_embedding(sides: Sides, materials: Materials, megapixels: float) -> Contenders:
    """A file -> its embedding; one of a few files each time."""
    paths = materials.singles[megapixels]
    found = {PEER: Contender(lambda path: sides.peer.encode_files([path]), paths)}
    return found | _controlled({name: Contender(m.encode_image, paths) for name, m in sides.models.items()})


def folder(sides: Sides, paths: Sequence[Path]) -> Contenders:
    """A folder of files -> all embeddings."""
    found = {PEER: Contender(sides.peer.encode_files, [paths])}
    return found | {name: Contender(m.encode_image, [paths]) for name, m in sides.models.items()}


def _controlled(contenders: Contenders) -> Contenders:
    """The first contender a second time, under a label of its own."""
    name, first = next(iter(contenders.items()))
    return {name: first, name + AGAIN: first.again()} | {n: c for n, c in contenders.items() if n != name}
