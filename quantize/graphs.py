"""Reading and writing ONNX models as `onnx` knows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import ExportError, TargetUnavailableError

INSTALL = "pip install 'edgeclip[quantize]'"
Array = NDArray[Any]


def parse(model: bytes) -> Any:
    """The ModelProto in these bytes.

    Raises:
        TargetUnavailableError: the `onnx` package is missing.
        ExportError: it is not an ONNX model.
    """
    try:
        import onnx
    except ImportError as exc:
        raise missing("onnx") from exc
    try:
        parsed = onnx.load_model_from_string(model)
    except Exception as exc:  # protobuf's, whose type differs between its versions
        raise ExportError(f"not an ONNX model: {exc}") from exc
    if not parsed.graph.node:
        raise ExportError("not an ONNX model: it has no nodes")
    return parsed


def serialize(model: Any) -> bytes:
    """The bytes of a ModelProto; the same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def missing(library: str) -> TargetUnavailableError:
    """The error of a library that is not installed."""
    return TargetUnavailableError(f"quantizing: {library} is not installed", hint=INSTALL)


def tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """Every constant of a graph with its name: initializers, and values of Constant nodes."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def to_array(tensor: Any) -> Array:
    """A TensorProto's values."""
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor))


def replace(field: Any, items: list[Any]) -> None:
    """Set a repeated field of a message to these items, which may be some of its own."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def element_types(model: Any) -> dict[str, int]:
    """The element type of every value whose type can be inferred, by name.

    Raises:
        ExportError: types contradict each other.
    """
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as exc:
        raise ExportError(f"the graph's types contradict each other: {str(exc).strip().splitlines()[0]}") from exc
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


def drop_unread(graph: Any) -> None:
    """Remove the nodes that nothing reads, and then the initializers."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    if len(kept) < len(graph.node):
        replace(graph.node, kept[::-1])
    drop_unused(graph)


def drop_unused(graph: Any) -> None:
    """Remove the initializers that nothing reads."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in used:
            del graph.initializer[i]


def file_name(model: Any) -> str:
    """`image.onnx` or `text.onnx`, by what the graph takes: pixels are uint8, token ids int32."""
    import onnx

    pixels = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return "image.onnx" if pixels else "text.onnx"
