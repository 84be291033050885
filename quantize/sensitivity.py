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
from edgeclip.quantize import extremes, graphs
from edgeclip.quantize.groups import GROUP, group_size
from edgeclip.quantize.layers import OPS, output_axis
from edgeclip.quantize.onnx_weights import to_integers
from edgeclip.quantize.scales import weight_bits

LEVELS = 255
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
    ranges = extremes.measure(model, samples, threads=threads) if precision == "w8a8" else None
    reference = _embed(proto, samples, threads)
    found = {}
    for place in places:
        rounded = _rounded(proto, place, weights, ranges, bits=weight_bits(precision))
        found[proto.graph.node[place].name] = _distance(_embed(rounded, samples, threads), reference)
        advance(1)
    return found


def _applies(node: Any, weights: Mapping[str, Any], precision: Precision) -> bool:
    """Products of two activations have nothing to quantize where only weights are."""
    return node.op_type in OPS and (precision == "w8a8" or node.input[1] in weights)


def _embed(proto: Any, samples: Array, threads: int) -> Embeddings:
    session = extremes.open_session(proto.SerializeToString(), threads)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: batch})[0] for batch in extremes.batches(samples)])


def _distance(rows: Embeddings, reference: Embeddings) -> float:
    """1 − mean cosine of unit vectors; 2, the most there is, where a row is not finite."""
    if not np.isfinite(rows).all():
        return 2.0
    return float(f"{max(0.0, 1 - float((rows.astype(np.float64) * reference).sum(axis=1).mean())):.4g}")


def _rounded(proto: Any, place: int, weights: Mapping[str, Any], ranges: extremes.Ranges, *, bits: int) -> Any:
    """A copy of the graph with one layer rounded."""
    changed = type(proto)()
    changed.CopyFrom(proto)
    node = changed.graph.node[place]
    for position, name in enumerate(list(node.input[:2])):
        if name in weights:
            node.input[position] = f"{name}~"
            changed.graph.initializer.append(_rounded_weight(weights[name], node, bits))
        elif ranges is not None:
            node.input[position] = f"{name}~"
            for extra in reversed(_rounding(changed.graph, name, *ranges[name].range_value)):
                changed.graph.node.insert(place, extra)
    return changed


def _rounded_weight(tensor: Any, node: Any, bits: int) -> Any:
    from onnx import numpy_helper

    values = graphs.to_array(tensor)
    return numpy_helper.from_array(round_weight(values, output_axis(node, values.ndim), bits), f"{tensor.name}~")


def round_weight(weight: Floats, axis: int, bits: int) -> Floats:
    """Round to symmetric integers and back: a scale for each output channel at 8 bits, for a group of its weights at 4.

    Args:
        axis: of the output channels.
    """
    moved = np.moveaxis(weight, axis, 0)
    width = moved[0].size
    group = group_size(width, GROUP) if bits == 4 else width
    rows = moved if bits == 8 else moved.reshape(-1, group)
    codes, scales = to_integers(rows, 0, largest=2 ** (bits - 1) - 1)
    return np.ascontiguousarray(np.moveaxis((codes * scales).reshape(moved.shape), 0, axis))


def _rounding(graph: Any, name: str, low: Any, high: Any) -> list[Any]:
    """The nodes that round an activation to 8 bits and back; their constants go into the graph."""
    from onnx import helper, numpy_helper

    low, high = min(0.0, float(np.min(low))), max(0.0, float(np.max(high)))  # the grid must hold 0 exactly
    step = (high - low) / LEVELS or 1.0
    scale, zero = f"{name}~scale", f"{name}~zero"
    graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(round(-low / step), np.uint8), zero))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}~int"]),
        helper.make_node("DequantizeLinear", [f"{name}~int", scale, zero], [f"{name}~"]),
    ]
