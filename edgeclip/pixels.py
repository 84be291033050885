"""A stream of images → batches of pixels, decoded ahead on threads while the engine runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, cast

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.cpus import available_cpus
from edgeclip.errors import ImageDecodeError, ImageTooLargeError, InputError, InputShapeError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import Image, preprocess
from edgeclip.resources import exhaustion

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    index: int
    source: str
    reason: str


@dataclass(frozen=True)
class PixelBatch:
    """Pixels that are ready for the image tower."""

    indices: list[int]
    """Positions in the input of the rows of `pixels`."""
    pixels: Array
    """uint8 [B, S, S, 3]."""
    skipped: list[Skipped]


def batches(
    images: Image | Iterable[Image], spec: Preprocess, batch_size: int, on_error: Literal["raise", "skip"]
) -> Iterator[PixelBatch]:
    """Preprocess images batch by batch, in order.

    Raises:
        InputError: with `on_error="raise"`, the first image that cannot be used, by its position and source.
    """
    numbered = enumerate(as_images(images))
    first = list(islice(numbered, 2))
    if len(first) < 2:  # one image: a thread would only cost
        yield from (_collect([_Try(*item, spec)], spec, on_error) for item in first)
        return
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="edgeclip-decode") as pool:
        ahead: deque[list[Future[_Try]]] = deque()
        source = chain(first, numbered)
        try:
            while chunk := _submit(pool, islice(source, batch_size), spec):
                ahead.append(chunk)
                if len(ahead) > BATCHES_AHEAD:
                    yield _collect([job.result() for job in ahead.popleft()], spec, on_error)
            while ahead:
                yield _collect([job.result() for job in ahead.popleft()], spec, on_error)
        finally:
            for job in chain.from_iterable(ahead):
                job.cancel()


def _submit(pool: ThreadPoolExecutor, numbered: Iterable[tuple[int, Image]], spec: Preprocess) -> list[Future[_Try]]:
    jobs = []
    for i, image in numbered:
        with exhaustion("decode images"):
            jobs.append(pool.submit(_Try, i, image, spec))
    return jobs


def as_images(images: Image | Iterable[Image]) -> Iterable[Image]:
    """One image or many, as an iterable. An array of four axes is many."""
    if isinstance(images, np.ndarray):
        return iter(images) if images.ndim == 4 else (images,)
    if isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "convert"):
        return (cast("Image", images),)
    if not isinstance(images, Iterable):
        raise InputShapeError(f"images: expected an image or an iterable of images, got {type(images).__name__}")
    return images


def name_of(image: Any) -> str:
    """How an image is called in messages: its path, or its type."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"<{type(image).__name__}>"


class _Try:
    """One image's pixels, or why there are none. Runs in a worker thread; the result keeps no hold on the input."""

    def __init__(self, index: int, image: Image, spec: Preprocess) -> None:
        self.index = index
        self.source = name_of(image)
        self.pixels: Array | None = None
        self.error: InputError | None = None
        try:
            self.pixels = preprocess(image, spec)
        except (ImageDecodeError, ImageTooLargeError, InputShapeError) as exc:
            self.error = exc


def _collect(tries: list[_Try], spec: Preprocess, on_error: Literal["raise", "skip"]) -> PixelBatch:
    failed = [t for t in tries if t.error is not None]
    if failed and on_error == "raise":
        error = failed[0].error
        assert error is not None
        raise type(error)(f"image {failed[0].index}: {error.message}", hint=error.hint) from error
    good = [(t.index, t.pixels) for t in tries if t.pixels is not None]
    pixels = np.empty((len(good), spec.size, spec.size, 3), np.uint8)
    for row, (_, one) in enumerate(good):
        pixels[row] = one
    return PixelBatch([index for index, _ in good], pixels, [Skipped(t.index, t.source, str(t.error)) for t in failed])
