"""From the runtime's batches to what a Core ML model takes: one image, or as many rows of token ids as it allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_program import ArrayFeature, ImageFeature, Program
from edgeclip.errors import InputShapeError, TargetLoadError

PAD_ID = 0
"""Fills rows of token ids up to the length that a model is fixed to. It stands after the end-of-text token, where a
causal tower does not look; of other towers the runtime hands over whole rows."""
LONGEST = 1 << 20


def feature(program: Program) -> tuple[str, ImageFeature | ArrayFeature]:
    """The one input of a tower, by name.

    Raises:
        TargetLoadError: the program has several, or none.
    """
    if len(program.features) != 1 or set(program.features) != set(program.inputs) or len(program.outputs) != 1:
        raise TargetLoadError(
            f"a tower has one input and one output, this model has {sorted(program.features)}"
            f" and {sorted(program.outputs)}"
        )
    return next(iter(program.features.items()))


def images(pixels: Array, image: ImageFeature) -> Iterator[Array]:
    """uint8 [B, S, S, 3] as one [1, 3, S, S] float32 each, channels in the model's order, values 0 to 255.

    Raises:
        InputShapeError: the pictures are not of the model's size.
    """
    require_size(pixels, image)
    for picture in pixels:
        channels = picture if image.color == "RGB" else picture[..., ::-1]
        yield np.ascontiguousarray(channels.transpose(2, 0, 1)[None], np.float32)


def require_size(pixels: Array, image: ImageFeature) -> None:
    """
    Raises:
        InputShapeError: the pictures are not [B, S, S, 3] of the model's size.
    """
    if pixels.ndim != 4 or pixels.shape[1:] != (image.height, image.width, 3):
        raise InputShapeError(f"pixels {list(pixels.shape)}, the model takes [B, {image.height}, {image.width}, 3]")


def rows(ids: Array, array: ArrayFeature) -> Iterator[tuple[Array, int]]:
    """int32 [B, C'] in pieces of shapes that the model takes, filled up; and how many rows of each piece count.

    Raises:
        InputShapeError: rows are longer than any that the model takes.
    """
    start = 0
    while start < len(ids):
        count, length = _shape(array, len(ids) - start, ids.shape[1])
        piece = ids[start : start + count]
        padded = np.full((count, length), PAD_ID, np.int32)
        padded[: len(piece), : ids.shape[1]] = piece
        yield padded, len(piece)
        start += count


def _shape(array: ArrayFeature, count: int, length: int) -> tuple[int, int]:
    """The shape that takes the most of `count` rows of `length` ids, with the least filling."""
    allowed = _allowed(array, count, length)
    if not allowed:
        longest = max([shape[1] for shape in array.shapes if len(shape) == 2], default=0)
        raise InputShapeError(f"{length} token ids a row, the model takes rows of {longest}")
    return min(allowed, key=lambda shape: (-min(shape[0], count), shape[0], shape[1]))


def _allowed(array: ArrayFeature, count: int, length: int) -> list[tuple[int, int]]:
    """Shapes that rows of `length` fit into; of a range of shapes, the nearest."""
    shapes = [(shape[0], shape[1]) for shape in array.shapes if len(shape) == 2 and shape[1] >= length]
    if len(array.ranges) == 2:
        nearest = [
            max(low, min(wanted, LONGEST if high is None else high))
            for wanted, (low, high) in zip((count, length), array.ranges, strict=True)
        ]
        shapes += [(nearest[0], nearest[1])] if nearest[1] >= length else []
    return shapes
