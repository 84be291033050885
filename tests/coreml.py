"""Tiny Core ML towers, as packages, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip.backends.base import Array, Files
from edgeclip.manifest import Artifact, TensorSpec, Tower
from edgeclip.quantize import mlpackage
from tests.bundles import artifact as any_artifact
from tests.mil import IOS16, mb, proto, specification, types

SIZE, CONTEXT, WIDTH = 6, 7, 4
FOLDER = "coreml-fp32"
BATCHES = (1, 2, 3, 4)
RNG = np.random.default_rng(3)
FILTERS = RNG.standard_normal((WIDTH, 3, 3, 3)).astype(np.float32) / 100
TABLE = RNG.standard_normal((20, WIDTH)).astype(np.float32)
TABLE[0] = 0  # of id 0, which fills rows up


def image_files(folder: Path, color: str = "RGB", size: int = SIZE) -> Files:
    """A tower from one image to the mean of four filters."""
    described = proto.Model_pb2.ModelDescription()
    feature = described.input.add(name="pixels").type.imageType
    feature.width = feature.height = size
    feature.colorSpace = feature.ColorSpace.Value(color)
    return package(
        lambda pixels: mb.reduce_mean(x=mb.conv(x=pixels, weight=FILTERS), axes=[2, 3], name="embeddings"),
        [mb.TensorSpec((1, 3, size, size))],
        described,
        folder,
        "image",
    )


def embed_images(pixels: Array) -> Array:
    """What the image tower computes of uint8 [B, S, S, 3]."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.float64), (3, 3), (1, 2))  # [B, H, W, C, 3, 3]
    return np.asarray(np.einsum("bhwcij,mcij->bm", windows, FILTERS) / np.prod(windows.shape[1:3]))


def text_files(folder: Path, ranges: Sequence[tuple[int, int]] = ()) -> Files:
    """A tower from ids to the sum of their rows in a table; of batches 1 to 4, or of shapes within these ranges."""
    described = proto.Model_pb2.ModelDescription()
    feature = described.input.add(name="ids").type.multiArrayType
    feature.dataType = feature.ArrayDataType.Value("INT32")
    feature.shape.extend([1, CONTEXT])
    for low, high in ranges:
        feature.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    for batch in BATCHES if not ranges else ():
        feature.enumeratedShapes.shapes.add(shape=[batch, CONTEXT])
    return package(
        lambda ids: mb.reduce_sum(x=mb.gather(x=TABLE, indices=ids, axis=0), axes=[1], name="embeddings"),
        [mb.TensorSpec((symbol(), CONTEXT if not ranges else symbol()), dtype=types.int32)],
        described,
        folder,
        "text",
    )


def embed_ids(ids: Array) -> Array:
    """What the text tower computes of int32 [B, C]."""
    return np.asarray(TABLE[ids].sum(axis=1, dtype=np.float64))


def package(build: Callable[..., Any], inputs: Sequence[Any], described: Any, folder: Path, tower: Tower) -> Files:
    """A program's package; its files by their paths within a bundle. `folder` is for files on the way."""
    model = specification(build, inputs, IOS16, folder, described)
    files = mlpackage.pack(tower, model, (folder / "weight.bin").read_bytes())
    return {f"{FOLDER}/{name}": data for name, data in files.items()}


def artifact(files: Files, tower: Tower, width: int = WIDTH) -> Artifact:
    """The manifest's entry of a package."""
    made = any_artifact(tower, "coreml", "fp32", sorted(files))
    output = TensorSpec(name="embeddings", dtype="float32", shape=("batch", width))
    return msgspec.structs.replace(made, file=listing(files), output=output)


def listing(files: Files) -> str:
    return next(name for name in files if name.endswith("/Manifest.json"))


def symbol() -> Any:
    """A length that is known only when the program runs."""
    from coremltools.converters.mil.mil import get_new_symbol

    return get_new_symbol()
