"""What is timed of a model: each stage from a file or a string to a similarity, with the same inputs for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeclip.backends.base import Array, Embeddings
from edgeclip.benchmarks.calls import Contender
from edgeclip.benchmarks.prepare import CAPTIONS, captions
from edgeclip.manifest import Tower
from edgeclip.model import Model
from edgeclip.preprocess import decode, preprocess

ENCODE: dict[str, Tower] = {"image_encode": "image", "text_encode": "text", "e2e_image": "image", "e2e_text": "text"}
"""Stages that differ from backend to backend, and the tower that each needs."""
HOST: dict[str, tuple[Tower, ...]] = {
    "decode": ("image",),
    "preprocess": ("image",),
    "tokenize": ("text",),
    "similarity": ("image", "text"),
}
"""Stages that the host does, whatever the backend, and the towers that each is for."""
CLASSES = 1000
"""Text embeddings that one image's is compared with."""


class Encoder(Protocol):
    """`edgeclip.Model`, or what stands beside it."""

    def encode_pixels(self, pixels: Array) -> Embeddings: ...

    def encode_ids(self, ids: Array) -> Embeddings: ...

    def encode_image(self, images: Any) -> Any: ...

    def encode_text(self, texts: Any) -> Any: ...


@dataclass(frozen=True)
class Material:
    """Inputs in memory, ready for every stage."""

    files: list[bytes]
    pixels: Array
    """uint8 [N, S, S, 3]."""
    ids: Array
    """int32 [M, C]; of no rows where there is no text tower."""

    @classmethod
    def of(cls, model: Model, paths: Sequence[Path]) -> Material:
        files, spec = [path.read_bytes() for path in paths], model.bundle.manifest.preprocess
        has_text = "text" in model.info.artifacts
        ids = model.tokenize(CAPTIONS) if has_text else np.empty((0, 0), np.int32)
        return cls(files, np.stack([preprocess(data, spec) for data in files]), ids)


def encode(encoder: Encoder, material: Material, stage: str, batch: int) -> Contender:
    """A call of a stage of `ENCODE`; other inputs each time."""
    calls: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "image_encode": (encoder.encode_pixels, [material.pixels[rows] for rows in _rows(len(material.pixels), batch)]),
        "text_encode": (encoder.encode_ids, [material.ids[rows] for rows in _rows(len(material.ids), batch)]),
        "e2e_image": (
            encoder.encode_image,
            [[material.files[i] for i in rows] for rows in _rows(len(material.files), batch)],
        ),
        "e2e_text": (encoder.encode_text, [captions(batch, first) for first in range(len(CAPTIONS))]),
    }
    return Contender(*calls[stage])


def host(model: Model, material: Material, stage: str) -> Contender:
    """A call of a stage of `HOST`, of one input."""
    spec = model.bundle.manifest.preprocess
    if stage == "decode":
        return Contender(lambda data: decode(data, spec, stage), material.files)
    if stage == "preprocess":
        decoded = [decode(data, spec, stage) for data in material.files]
        return Contender(lambda one: one.resized(spec, stage), decoded)
    if stage == "tokenize":
        return Contender(model.tokenize, [[text] for text in CAPTIONS])
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, model.info.embed_dim)).astype(np.float32) for n in (8, CLASSES))
    return Contender(lambda image: model.similarity(image, texts), [images[i : i + 1] for i in range(len(images))])


def _rows(count: int, batch: int) -> list[list[int]]:
    """Which inputs each call takes; every input comes first once, but not in more than 16 calls."""
    return [[(first + i) % count for i in range(batch)] for first in range(min(count, 16))]
