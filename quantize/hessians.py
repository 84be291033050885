"""Which of a layer's inputs go together, measured on samples: Xᵀ·X, on which rounding is corrected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.quantize import correction, extremes, graphs
from edgeclip.quantize.graphs import Array

MOST_BYTES = 1 << 29
"""Of the matrices that are summed up in one pass over the samples."""
Hessian = NDArray[np.float64]


def measure(model: bytes, names: Sequence[str], samples: Array, *, threads: int = 2) -> Iterator[tuple[str, Hessian]]:
    """Each layer's name and its matrix, [K, K]; a layer that `unfolds` denies is left out.

    Args:
        model: a tower's ONNX.
        names: of layers whose weights are constant, in graph order.
        samples: its inputs, uint8 [N, S, S, 3] or int32 [N, C]. What a text tower computes behind the end of a text
            is nobody's, and left out.
    """
    parsed = graphs.parse(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in parsed.graph.initializer}
    wanted = set(names)
    nodes = [node for node in parsed.graph.node if node.name in wanted and unfolds(node)]
    lengths = {node.name: _length(node, shapes[node.input[1]]) for node in nodes}
    for group in _groups(nodes, lengths):
        sums = {node.name: np.zeros((lengths[node.name],) * 2) for node in group}
        inputs = list(dict.fromkeys(node.input[0] for node in group))
        session = extremes.open_session(_until(parsed, inputs), threads)
        given = session.get_inputs()[0].name
        for batch in extremes.batches(samples):
            found = dict(zip(inputs, session.run(inputs, {given: batch}), strict=True))
            for node in group:
                values = found[node.input[0]]
                seen = _seen(batch, values)
                rows = _rows(values, node, shapes[node.input[1]]) if seen is None else values[seen]
                sums[node.name] += rows.T @ rows
        yield from sums.items()


def unfolds(node: Any) -> bool:
    """Whether the layer is a product of rows and its weights, so that there is one matrix for all outputs."""
    if node.op_type != "Conv":
        return not _options(node).get("transA", 0)
    options = _options(node)
    plain = options.get("group", 1) == 1 and options.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return plain and len(options.get("kernel_shape", ())) == 2 and set(options.get("dilations", (1,))) == {1}


def _options(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _length(node: Any, shape: Sequence[int]) -> int:
    """Weights of an output."""
    if node.op_type == "Conv":
        return int(np.prod(shape[1:]))
    return int(shape[1] if _options(node).get("transB", 0) else shape[0])


def _groups(nodes: Sequence[Any], lengths: dict[str, int]) -> Iterator[list[Any]]:
    """Layers whose matrices fit into memory together, in graph order."""
    group: list[Any] = []
    taken = 0
    for node in nodes:
        size = 8 * lengths[node.name] ** 2
        if group and taken + size > MOST_BYTES:
            yield group
            group, taken = [], 0
        group.append(node)
        taken += size
    if group:
        yield group


def _until(parsed: Any, values: Sequence[str]) -> bytes:
    """The model with these values as its outputs, and nothing that they do not need."""
    import onnx

    part = type(parsed)()
    part.CopyFrom(parsed)
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    graphs.drop_unread(part.graph)
    return graphs.serialize(part)


def _seen(batch: Array, values: Array) -> NDArray[np.bool_] | None:
    """Which positions are of the text, bool [B, C]; None where there are none, as with pixels. Its end has the highest
    id.
    """
    if batch.ndim != 2 or values.shape[:2] != batch.shape:
        return None
    return np.asarray(np.arange(batch.shape[1]) <= batch.argmax(axis=1)[:, None])


def _rows(values: Array, node: Any, shape: Sequence[int]) -> NDArray[np.float32]:
    """What the weights of an output are multiplied by, [positions, K]."""
    if node.op_type != "Conv":
        return np.asarray(values, np.float32).reshape(-1, values.shape[-1])
    options = _options(node)
    pads = options.get("pads", (0, 0, 0, 0))
    return correction.unfold(values, shape[2:], options.get("strides", (1, 1)), pads[:2], pads[2:])
