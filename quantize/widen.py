"""Half-precision graphs in single precision, so that a bundle that ships fp16 alone can be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeclip.errors import ExportError
from edgeclip.quantize import graphs

PROTOBUF_LIMIT = 2 << 30


def widen(model: bytes) -> bytes:
    """An fp16 ONNX model as fp32. Values stay what they are: what rounding to half precision lost stays lost.

    Casts that would convert float to float are dropped. A model without half precision comes back as it is.

    Raises:
        ExportError: not an ONNX model, one that does not type-check in fp32, or more than protobuf's 2 GiB.
        TargetUnavailableError: `onnx` is missing.
    """
    import onnx

    parsed = graphs.parse(model)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    graph = parsed.graph
    values = [value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)]
    tensors = [tensor for tensor in _tensors(graph) if tensor.data_type == half]
    casts = [_to(node) for node in graph.node if node.op_type == "Cast" and _to(node).i == half]
    if not tensors and not casts and all(value.elem_type != half for value in values):
        return model
    for tensor in tensors:
        _widen_tensor(tensor)
    for target in casts:
        target.i = single
    for value in values:
        value.elem_type = single if value.elem_type == half else value.elem_type
    if parsed.ByteSize() >= PROTOBUF_LIMIT:
        raise ExportError(f"in fp32 the model has {parsed.ByteSize()} bytes, more than an ONNX file can hold")
    _drop_idle_casts(parsed)
    _check(parsed)
    return graphs.serialize(parsed)


def _tensors(graph: Any) -> Iterator[Any]:
    """Initializers, and the tensors in nodes' attributes."""
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))


def _to(cast: Any) -> Any:
    """The attribute of a Cast that names its target type."""
    return next(a for a in cast.attribute if a.name == "to")


def _widen_tensor(tensor: Any) -> None:
    import onnx

    values = graphs.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _drop_idle_casts(model: Any) -> None:
    """Remove casts from float to float, but for one whose result is the graph's."""
    import onnx

    types = graphs.element_types(model)
    outputs = {value.name for value in model.graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in model.graph.node:  # in topological order: what a name stands for is known before it is used
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
        float_ = onnx.TensorProto.FLOAT
        idle = node.op_type == "Cast" and _to(node).i == float_ == types.get(node.input[0])
        if idle and node.output[0] not in outputs:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    graphs.replace(model.graph.node, kept)
    graphs.replace(model.graph.value_info, [v for v in model.graph.value_info if v.name not in source])


def _check(model: Any) -> None:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the model does not type-check in fp32: {str(exc).strip().splitlines()[0]}") from exc
