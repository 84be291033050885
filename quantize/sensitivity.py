"""How much each layer's quantization alone moves a tower's embeddings.

One layer at a time is rounded in the fp32 graph, weights and, where the precision says so, activations; everything else
stays as it is. The distortion is 1 − the mean cosine between the embeddings with and without. Ranks are shared by all
targets: they tell which layers to spare, not how well a toolchain does on the others.

Source: the one-at-a-time sensitivity of Wu et al., "Integer quantization for deep learning inference" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Array, Embeddings
from edgeclip.manifest import Precision
from edgeclip.quantize import graphs
from edgeclip.quantize.layers import OPS
from edgeclip.quantize.ranges import Range, observe, open_session, parts

GROUP = 64
"""Input channels that share a scale at 4 bits."""
Floats = NDArray[np.float32]


def distortions(
    model: bytes,
    samples: Array,
    precision: Precision,
    *,
    threads: int = 1,
    advance: Callable[[int], None] = lambda amount: None,
) -> dict[str, float]:
    """Layer name → 1 − mean cosine where it alone is quantized, in graph order.

    Args:
        model: a tower's fp32 ONNX.
        samples: its input, uint8 [N, S, S, 3] or int32 [N, C]; a few dozen tell enough.
        advance: told of each layer that is done.
    """
    proto = graphs.parse(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    places = [i for i, node in enumerate(proto.graph.node) if _applies(node, weights, precision)]
    ranges = _ranges(proto, places, weights, samples, threads) if precision == "w8a8" else {}
    reference = _embed(proto, samples, threads)
    found = {}
    for place in places:
        rounded = _rounded(proto, place, weights, ranges, bits=4 if precision == "w4a16" else 8)
        found[proto.graph.node[place].name] = _distance(_embed(rounded, samples, threads), reference)
        advance(1)
    return found


def _applies(node: Any, weights: Mapping[str, Any], precision: Precision) -> bool:
    """Products of two activations have nothing to quantize where only weights are."""
    return node.op_type in OPS and (precision == "w8a8" or node.input[1] in weights)


def _ranges(
    proto: Any, places: list[int], weights: Mapping[str, Any], samples: Array, threads: int
) -> dict[str, Range]:
    nodes = [proto.graph.node[place] for place in places]
    active = sorted({name for node in nodes for name in node.input[:2] if name not in weights})
    return observe(proto, active, samples, threads=threads)


def _embed(proto: Any, samples: Array, threads: int) -> Embeddings:
    session = open_session(proto.SerializeToString(), threads)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part})[0] for part in parts(samples)])


def _distance(rows: Embeddings, reference: Embeddings) -> float:
    """1 − mean cosine of unit vectors; 2, the most there is, where a row is not finite."""
    if not np.isfinite(rows).all():
        return 2.0
    return float(f"{max(0.0, 1 - float((rows.astype(np.float64) * reference).sum(axis=1).mean())):.4g}")


def _rounded(proto: Any, place: int, weights: Mapping[str, Any], ranges: Mapping[str, Range], *, bits: int) -> Any:
    """A copy of the graph with one layer rounded."""
    changed = type(proto)()
    changed.CopyFrom(proto)
    node = changed.graph.node[place]
    for position, name in enumerate(list(node.input[:2])):
        if name in weights:
            node.input[position] = f"{name}~"
            changed.graph.initializer.append(_rounded_weight(weights[name], node, bits))
        elif name in ranges:
            node.input[position] = f"{name}~"
            for extra in reversed(_rounding(changed.graph, name, ranges[name])):
                changed.graph.node.insert(place, extra)
    return changed


def _rounded_weight(tensor: Any, node: Any, bits: int) -> Any:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    flat, restore = _by_output(values, node)
    return numpy_helper.from_array(restore(round_rows(flat, bits)).astype(np.float32), f"{tensor.name}~")


def _by_output(values: Floats, node: Any) -> tuple[Floats, Callable[[Floats], Floats]]:
    """A weight as [output channels, everything else], and the way back."""
    is_transposed = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    )
    moved = np.moveaxis(values, -1, 0) if is_transposed else values
    shape = moved.shape
    return moved.reshape(
        shape[0], -1
    ), lambda rows: np.moveaxis(rows.reshape(shape), 0, -1) if is_transposed else rows.reshape(shape)


def round_rows(rows: Floats, bits: int) -> Floats:
    """Round to symmetric integers and back: a scale for each row at 8 bits, for each `GROUP` of a row at 4."""
    limit = 2 ** (bits - 1) - 1
    width = rows.shape[1]
    group = GROUP if bits == 4 and width % GROUP == 0 else width
    grouped = rows.reshape(len(rows), -1, group)
    scale = np.maximum(np.abs(grouped).max(axis=2, keepdims=True) / limit, 1e-12)
    return np.asarray((np.round(grouped / scale) * scale).reshape(rows.shape), np.float32)


def _rounding(graph: Any, name: str, seen: Range) -> list[Any]:
    """The nodes that round an activation to 8 bits and back; their constants go into the graph."""
    from onnx import helper, numpy_helper

    scale, zero = f"{name}~scale", f"{name}~zero"
    graph.initializer.append(numpy_helper.from_array(np.array(seen.scale, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(seen.zero_point, np.uint8), zero))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}~int"]),
        helper.make_node("DequantizeLinear", [f"{name}~int", scale, zero], [f"{name}~"]),
    ]
