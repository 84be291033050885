"""The program in a Core ML model: its inputs, its operations, its outputs. Read from the file's bytes, without NumPy.

Source: field numbers from coremltools' Model.proto, FeatureTypes.proto and MIL.proto (specification version 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edgeclip.backends.mil_wire import Message
from edgeclip.buffers import Buffer
from edgeclip.errors import TargetLoadError

MAX_BYTES = 1 << 24
"""Of a program. That of ViT-B/32 has a tenth of a megabyte; weights lie beside it."""
MAIN = "main"

_MODEL_VERSION, _MODEL_DESCRIPTION, _MODEL_PROGRAM = 1, 2, 502
_DESCRIPTION_INPUT, _DESCRIPTION_OUTPUT, _DESCRIPTION_FUNCTIONS, _DESCRIPTION_STATE = 1, 10, 20, 13
_IMAGE, _ARRAY = 4, 5

DTYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""MIL's data types that are understood, by their number in `DataType`."""
_COLORS = {20: "RGB", 30: "BGR"}


@dataclass(frozen=True)
class TensorType:
    """Of a value in a program. A scalar's shape is ()."""

    dtype: str
    shape: tuple[int | None, ...]
    """None is an axis whose length is known only when the program runs."""

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


@dataclass(frozen=True)
class BlobValue:
    """A constant that lies in a file of weights."""

    type: TensorType
    file: str
    """As the program writes it, `@model_path/weights/weight.bin`."""
    offset: int


@dataclass(frozen=True)
class InlineValue:
    """A constant inside the program: one of `data`, `integers` and `texts`, as its type is serialised."""

    type: TensorType
    data: bytes = field(default=b"", repr=False)
    """Little-endian; of types below eight bits, packed."""
    integers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


Value: TypeAlias = BlobValue | InlineValue
Argument: TypeAlias = str | Value
"""The name of an earlier value, or a constant."""


@dataclass(frozen=True)
class Operation:
    """One step of a program."""

    type: str
    inputs: Mapping[str, tuple[Argument, ...]]
    """By parameter; most parameters take one argument, `concat` any number."""
    outputs: tuple[tuple[str, TensorType], ...]
    attributes: Mapping[str, Value]
    """`val` of a `const`; of older `constexpr_…` operations, all parameters."""

    def __str__(self) -> str:
        return f"operation {self.type} ({self.outputs[0][0]})" if self.outputs else f"operation {self.type}"


@dataclass(frozen=True)
class ImageFeature:
    """An image that an app hands over: a picture of fixed size."""

    width: int
    height: int
    color: str
    """`RGB` or `BGR`."""


@dataclass(frozen=True)
class ArrayFeature:
    """An array that an app hands over."""

    shapes: tuple[tuple[int, ...], ...]
    """Those that are allowed; the first is the default."""
    ranges: tuple[tuple[int, int | None], ...] = ()
    """Where lengths are free within bounds: each axis' lowest and highest, None for no bound."""


@dataclass(frozen=True)
class Program:
    """A model's main function."""

    features: Mapping[str, ImageFeature | ArrayFeature]
    """What an app hands over, by name."""
    inputs: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    specification_version: int

    @property
    def weight_files(self) -> set[str]:
        """The files that its constants lie in, as it writes them."""
        values = (
            value
            for operation in self.operations
            for group in (operation.attributes.values(), *operation.inputs.values())
            for value in group
        )
        return {value.file for value in values if isinstance(value, BlobValue)}


def parse(data: Buffer) -> Program:
    """Read a `model.mlmodel`.

    Raises:
        TargetLoadError: it is not a Core ML model, or no ML program of one function without control flow or state.
    """
    if len(data) > MAX_BYTES:
        raise TargetLoadError(f"a program of {len(data)} bytes, the limit is {MAX_BYTES}")
    model = Message(memoryview(data))
    if not model.has(_MODEL_PROGRAM):
        raise TargetLoadError("not an ML program: other kinds of Core ML model are not run")
    description = model.message(_MODEL_DESCRIPTION)
    if description.has(_DESCRIPTION_FUNCTIONS) or description.has(_DESCRIPTION_STATE):
        raise TargetLoadError("the ML program has several functions, or state: such are not run")
    functions = model.message(_MODEL_PROGRAM).mapping(2)
    if list(functions) != [MAIN]:
        raise TargetLoadError(f"an ML program of the functions {sorted(functions)}: only one called {MAIN!r} is run")
    function = functions[MAIN]
    blocks = function.mapping(3)
    opset = function.text(2)
    if opset not in blocks:
        raise TargetLoadError(f"the ML program has no block for its opset {opset[:40]!r}")
    block = blocks[opset]
    return Program(
        features={entry.text(1): _feature(entry) for entry in description.messages(_DESCRIPTION_INPUT)},
        inputs=dict(_named_type(entry) for entry in function.messages(1)),
        operations=tuple(_operation(entry) for entry in block.messages(3)),
        outputs=tuple(block.texts(2)),
        specification_version=model.integer(_MODEL_VERSION),
    )


def _feature(entry: Message) -> ImageFeature | ArrayFeature:
    kind = entry.message(3)
    if kind.has(_IMAGE):
        image = kind.message(_IMAGE)
        color = _COLORS.get(image.integer(3))
        if color is None or image.has(21) or image.has(31):
            raise TargetLoadError(f"input {entry.text(1)!r}: only RGB and BGR images of one size are taken")
        return ImageFeature(image.signed(1), image.signed(2), color)
    if not kind.has(_ARRAY):
        raise TargetLoadError(f"input {entry.text(1)!r}: neither an image nor an array")
    array = kind.message(_ARRAY)
    shapes = (tuple(array.integers(1)), *(tuple(shape.integers(1)) for shape in array.message(21).messages(1)))
    ranges = tuple(_range(size) for size in array.message(31).messages(1))
    return ArrayFeature(tuple(dict.fromkeys(shapes)), ranges)


def _range(size: Message) -> tuple[int, int | None]:
    upper = size.signed(2)
    return size.integer(1), None if upper < 0 else upper


def _operation(entry: Message) -> Operation:
    if entry.has(4):
        raise TargetLoadError(f"operation {entry.text(1)[:80]}: control flow is not run")
    return Operation(
        type=entry.text(1),
        inputs={name: _arguments(argument) for name, argument in entry.mapping(2).items()},
        outputs=tuple(_named_type(output) for output in entry.messages(3)),
        attributes={name: _value(value) for name, value in entry.mapping(5).items()},
    )


def _arguments(argument: Message) -> tuple[Argument, ...]:
    return tuple(b.text(1) if b.has(1) else _value(b.message(2)) for b in argument.messages(1))


def _named_type(entry: Message) -> tuple[str, TensorType]:
    return entry.text(1), _type(entry.message(2))


def _type(entry: Message) -> TensorType:
    if not entry.has(1):
        raise TargetLoadError("a value that is not a tensor: lists, dictionaries and state are not run")
    tensor = entry.message(1)
    number = tensor.integer(1)
    if number not in DTYPES:
        raise TargetLoadError(f"a tensor of data type {number}, which is not known")
    shape = tuple(_dimension(dimension) for dimension in tensor.messages(3))
    if tensor.signed(2) != len(shape):
        raise TargetLoadError("a tensor whose number of axes is not fixed")
    return TensorType(DTYPES[number], shape)


def _dimension(entry: Message) -> int | None:
    if entry.message(2).integer(1):
        raise TargetLoadError("a tensor whose number of axes is not fixed")
    return entry.message(1).integer(1) if entry.has(1) else None


def _value(entry: Message) -> Value:
    kind = _type(entry.message(2))
    if entry.has(5):
        blob = entry.message(5)
        return BlobValue(kind, blob.text(1), blob.integer(2))
    immediate = entry.message(3)
    if not immediate.has(1):
        raise TargetLoadError("a constant that is not a tensor")
    return _inline(kind, immediate.message(1))


def _inline(kind: TensorType, tensor: Message) -> InlineValue:
    """Floats, doubles and bytes are kept as bytes; the other lists as Python values."""
    for number, code in ((1, "f"), (6, "d")):
        if tensor.has(number):
            return InlineValue(kind, tensor.message(number).numbers(1, code))
    for number in (2, 3, 5):
        if tensor.has(number):
            return InlineValue(kind, integers=tuple(tensor.message(number).integers(1)))
    if tensor.has(4):
        return InlineValue(kind, texts=tuple(tensor.message(4).texts(1)))
    return InlineValue(kind, bytes(tensor.message(7).binary(1)))
