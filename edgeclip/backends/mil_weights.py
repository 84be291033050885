"""Constants of an ML program as arrays, whether they stand in the program or in a file of weights.

fp16 is held as float32 arrays whose values half precision can hold: NumPy computes in float32 far faster, and
`rounded` brings every result back.

Source: MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp in coremltools.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_program import BlobValue, InlineValue, TensorType, Value
from edgeclip.buffers import Buffer
from edgeclip.errors import TargetLoadError

Constant = Array | str
STORED: dict[str, Any] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
"""How a data type is laid out in a file."""
SMALL = {"int4": 4, "uint4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint6": 6}
"""Types of less than eight bits, which are packed, lowest bits first."""

_BLOB_TYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
_SENTINEL = 0xDEADBEEF
_HEADER, _METADATA = struct.Struct("<II56x"), struct.Struct("<IIQQ40x")
_VERSION = 2


def load(value: Value, files: Mapping[str, Buffer]) -> Constant:
    """A constant, of the shape and data type that the program states.

    Args:
        files: of weights, by the name that programs give them.

    Raises:
        TargetLoadError: it is damaged, lies outside the file, or is not as large as its shape.
    """
    if isinstance(value, BlobValue):
        return _array(value.type, _blob(value, files))
    if value.type.dtype == "string":
        return _only(value.texts)
    if value.integers or value.texts:
        return _integers(value)
    return _array(value.type, value.data)


def rounded(values: Array, dtype: str) -> Array:
    """Values in a data type; fp16 as float32 that half precision holds, ties to even, beyond its range infinite.

    Numbers become integers by cutting off their fraction.
    """
    if dtype == "fp16":
        half = values.astype(np.float16) if values.dtype != np.float16 else values
        return half.astype(np.float32)
    return np.asarray(values.astype(STORED[dtype], copy=False))


def unpacked(data: bytes | memoryview, bits: int, count: int, *, signed: bool = False) -> Array:
    """The first `count` integers of `bits` bits each, lowest bits first, as uint8 or int8."""
    if len(data) != math.ceil(bits * count / 8):
        raise TargetLoadError(f"{len(data)} bytes of {bits}-bit integers, {math.ceil(bits * count / 8)} expected")
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little", count=bits * count)
    values = (flat.reshape(count, bits) << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return np.asarray(values)
    middle = 1 << (bits - 1)
    return np.asarray(((values ^ middle).astype(np.int16) - middle).astype(np.int8))


def _array(kind: TensorType, data: bytes | memoryview) -> Array:
    shape = _fixed(kind)
    count = math.prod(shape)
    if kind.dtype in SMALL:
        return unpacked(data, SMALL[kind.dtype], count, signed=kind.dtype == "int4").reshape(shape)
    if kind.dtype not in STORED:
        raise TargetLoadError(f"a constant of type {kind.dtype}")
    stored = np.dtype(STORED[kind.dtype]).newbyteorder("<")
    if len(data) != count * stored.itemsize:
        raise TargetLoadError(f"{len(data)} bytes for {kind}, {count * stored.itemsize} expected")
    return rounded(np.frombuffer(data, stored).reshape(shape), kind.dtype)


def _integers(value: InlineValue) -> Array:
    shape = _fixed(value.type)
    if len(value.integers) != math.prod(shape) or value.type.dtype not in STORED:
        raise TargetLoadError(f"{len(value.integers)} integers for {value.type}")
    try:
        wide = np.array(value.integers, np.int64)
    except OverflowError as exc:
        raise TargetLoadError(f"an integer that does not fit {value.type}") from exc
    return np.asarray(wide.astype(STORED[value.type.dtype]).reshape(shape))


def _blob(value: BlobValue, files: Mapping[str, Buffer]) -> memoryview:
    """The bytes of a constant, found through its record in the file."""
    if value.file not in files:
        raise TargetLoadError(f"weights in {value.file[:80]!r}, a file that the package does not have")
    data = memoryview(files[value.file])
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[1] != _VERSION:
        raise TargetLoadError(f"{value.file}: not a file of weights")
    if value.offset % 64 or value.offset + _METADATA.size > len(data):
        raise TargetLoadError(f"{value.file}: no constant at byte {value.offset}")
    sentinel, number, size, start = _METADATA.unpack_from(data, value.offset)
    if sentinel != _SENTINEL or _BLOB_TYPES.get(number) != value.type.dtype:
        raise TargetLoadError(f"{value.file}: no {value.type.dtype} constant at byte {value.offset}")
    if start + size > len(data):
        raise TargetLoadError(f"{value.file}: bytes {start} to {start + size} of {len(data)}")
    return data[start : start + size]


def _fixed(kind: TensorType) -> tuple[int, ...]:
    shape = tuple(n for n in kind.shape if n is not None)
    if len(shape) != len(kind.shape):
        raise TargetLoadError(f"a constant of type {kind}, whose shape is not fixed")
    return shape


def _only(texts: tuple[str, ...]) -> str:
    if len(texts) != 1:
        raise TargetLoadError(f"{len(texts)} strings where one is expected")
    return texts[0]
