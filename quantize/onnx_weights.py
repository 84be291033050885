"""Weights as 8-bit integers in an ONNX file; the arithmetic stays in floating point.

A weight is stored as int8 codes with one float scale an output channel, and becomes float again by `Cast` and `Mul`.
Both are of the standard domain, and every engine folds them. `DequantizeLinear`, which says the same in one node, is
not used: ONNX Runtime keeps it for kernels that it does not have here and would convert the weights anew in each run,
which doubles the time of a RepVGG tower, and has a text tower convert its whole token table for each text.

What it saves is the file: ONNX Runtime has the weights as float in memory once it has loaded them, OpenVINO keeps them
as they are. Only the token table's codes stay codes in either: rows are looked up first and made float afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.quantize import correction, graphs, hessians, layers
from edgeclip.quantize.graphs import Array
from edgeclip.quantize.made import Made
from edgeclip.quantize.sums import round_windows

MIN_SIZE = 256
"""Elements of a weight below which it is left alone: scales and nodes would take up what the codes save."""
WINDOWS = 4
"""Axes of a convolution's weight."""
LARGEST = 127
"""Codes lie in [-127, 127], so that the range is symmetric."""
Codes = NDArray[np.int8]
Corrected = Mapping[tuple[str, int], Codes]
"""Codes of weights, by name and axis of the output channels."""
_NOTHING: Corrected = MappingProxyType({})


def quantize_onnx_weights(model: bytes, *, keep: frozenset[str] = frozenset(), samples: Array | None = None) -> Made:
    """Store the weights of convolutions and matrix products, and the token table, as int8 (`w8a16`).

    Args:
        model: fp32, as `edgeclip.export` or `widen` makes it.
        keep: names of layers whose weights stay as they are.
        samples: inputs of the tower, uint8 [N, S, S, 3] or int32 [N, C]; on the first 64 of them the rounding is
            corrected, which takes minutes for a large tower.

    Returns:
        `{tower}.onnx`, self-contained, the same bytes each time; a quarter of the size.

    Raises:
        UsageError: a name in `keep` is no layer's.
        NonFiniteError: NaN or infinity in the weights.
        ExportError: not an ONNX model.
        TargetUnavailableError: `onnx` is missing.
    """
    parsed = graphs.parse(model)
    layers.check_kept(keep, layers.layers_of(parsed.graph))
    layers.check_finite_in(parsed.graph)
    corrected = _NOTHING if samples is None else _correct(model, parsed.graph, keep, samples)
    store_weights(parsed.graph, keep, corrected)
    store_table(parsed.graph)
    return Made({graphs.file_name(parsed): graphs.serialize(parsed)}, layers.stored_as_integers(parsed.graph))


def _correct(model: bytes, graph: Any, keep: frozenset[str], samples: Array) -> Corrected:
    """The codes of the layers that are not kept, each rounded for the inputs that it has in the fp32 model."""
    weights = {t.name: t for t in graph.initializer}
    nodes = {n.name: n for n in graph.node if _is_stored(n, keep, weights)}
    found: dict[tuple[str, int], Codes] = {}
    for name, hessian in hessians.measure(model, list(nodes), samples[: correction.SAMPLES]):
        weight = nodes[name].input[1]
        values = graphs.to_array(weights[weight])
        axis = layers.output_axis(nodes[name], values.ndim)
        moved = np.moveaxis(values, axis, 0)
        scales = scales_of(values, axis).reshape(-1)
        rows = correction.round_rows(moved.reshape(len(moved), -1), scales, hessian, LARGEST)
        found[weight, axis] = np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), 0, axis))
    return found


def store_weights(graph: Any, keep: frozenset[str], corrected: Corrected = _NOTHING) -> None:
    """Replace the float weights of the layers that are not kept. Changes the graph.

    Args:
        corrected: codes that are better than the nearest integers.
    """
    weights = {t.name: t for t in graph.initializer}
    nodes: list[Any] = []
    stored: dict[tuple[str, int], str] = {}
    for node in graph.node:
        if _is_stored(node, keep, weights):
            name, axis = node.input[1], layers.output_axis(node, len(weights[node.input[1]].dims))
            if (name, axis) not in stored:
                stored[name, axis] = f"{name}.float{axis}"
                codes, scales = _add(graph, weights[name], axis, corrected.get((name, axis)))
                nodes += _to_float(codes, scales, stored[name, axis])
            node.input[1] = stored[name, axis]
        nodes.append(node)
    graphs.replace(graph.node, nodes)
    graphs.drop_unused(graph)


def store_table(graph: Any) -> None:
    """Replace the tables that rows are gathered from, one scale a row. Changes the graph."""
    tables = {t.name: t for t in graph.initializer if len(t.dims) == 2}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "Gather" and _axis(node) == 0 and _worth_it(tables.get(node.input[0])):
            nodes += _gather(graph, node, tables[node.input[0]])
        else:
            nodes.append(node)
    graphs.replace(graph.node, nodes)
    graphs.drop_unused(graph)


def to_integers(weight: Array, axis: int, largest: int = LARGEST) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes in [-127, 127], and the scales that they are to be multiplied by.

    Args:
        weight: float32, of any shape; of four axes, a convolution's, whose windows keep their sums.
        axis: of the output channels.
        largest: code that there is; 7 at 4 bits.

    Returns:
        int8 of the weight's shape, and float32 that broadcasts against it.
    """
    scales = scales_of(weight, axis, largest)
    steps = weight / scales
    if weight.ndim == WINDOWS and axis == 0:
        return round_windows(steps, -largest, largest), scales
    return np.clip(np.rint(steps), -largest, largest).astype(np.int8), scales


def scales_of(weight: Array, axis: int, largest: int = LARGEST) -> NDArray[np.float32]:
    """One for each output channel, so that its largest weight has the largest code; broadcast against the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales: NDArray[np.float32] = (np.abs(weight).max(axis=others, keepdims=True) / largest).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1.0  # a channel of zeros, or as good as zeros
    return scales


def settle(graph: Any, names: Collection[str]) -> None:
    """Round the weights of these convolutions to what `to_integers` makes of them, as float; whoever rounds each to the
    nearest integer then finds those. Changes the graph.
    """
    import onnx

    weights = {t.name: t for t in graph.initializer}
    for node in graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "Conv" and node.name in names else None
        if tensor is not None and len(tensor.dims) == WINDOWS:
            codes, scales = to_integers(graphs.to_array(tensor), 0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(codes * scales, tensor.name))


def _is_stored(node: Any, keep: frozenset[str], weights: Mapping[str, Any]) -> bool:
    """Whether it is a layer whose weight becomes integers."""
    return node.op_type in layers.OPS and node.name not in keep and _worth_it(weights.get(node.input[1]))


def _worth_it(tensor: Any) -> bool:
    import onnx

    return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_SIZE


def _axis(gather: Any) -> int:
    return next((a.i for a in gather.attribute if a.name == "axis"), 0)


def _add(graph: Any, tensor: Any, axis: int, corrected: Codes | None = None) -> tuple[str, str]:
    """Add a weight's codes and scales to the initializers, once; returns their names."""
    import onnx

    names = f"{tensor.name}.int8.{axis}", f"{tensor.name}.scale.{axis}"
    if names[0] not in {t.name for t in graph.initializer}:
        weight = graphs.to_array(tensor)
        made = to_integers(weight, axis) if corrected is None else (corrected, scales_of(weight, axis))
        for name, values in zip(names, made, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return names


def _to_float(codes: str, scales: str, output: str) -> list[Any]:
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [codes], [f"{output}.cast"], f"{output}.cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{output}.cast", scales], [output], output),
    ]


def _gather(graph: Any, node: Any, table: Any) -> list[Any]:
    from onnx import helper

    output = node.output[0]
    looked_up = f"{output}.int8", f"{output}.scale"
    gathers = [
        helper.make_node("Gather", [source, node.input[1]], [name], name, axis=0)
        for source, name in zip(_add(graph, table, 0), looked_up, strict=True)
    ]
    return gathers + _to_float(*looked_up, output)
