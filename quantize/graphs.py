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
