"""Learned scales in an OpenVINO model: the integers that training has computed with. Of the child process only.

x, W → Convolution          Given
x → FakeQuantize ─────────────────────────────────────┐
integer W → Convert → Multiply (→ Reshape) → Convert ─┴→ Convolution          Result
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import ir_graph
from edgeclip.quantize.ir_rounding import pack
from edgeclip.quantize.scales import Learned, Scales, integers

_LEVELS = 256


def apply_scales(model: Any, learned: Learned) -> None:
    """Round the layers that have scales; the model is changed.

    Args:
        learned: of one tower, layers named as in its graph.

    Raises:
        ValueError: a layer is not in the model, or its scales do not fit its weights.
    """
    ir_graph.turn_weights(model)
    layers = {ir_graph.name_of(node): node for node in ir_graph.layers(model)}
    for name, scales in learned.layers.items():
        if name not in layers:
            raise ValueError(f"no layer is named {name}")
        node = layers[name]
        node.input(1).replace_source_output(_weight(node, scales))
        if scales.activation_scale is not None:
            node.input(0).replace_source_output(_rounded(node.input_value(0), scales, symmetric=learned.symmetric))


def _weight(node: Any, scales: Scales) -> Any:
    """The output of a subgraph that makes a weight [O, I, ...] from its integers."""
    stored = node.input_value(1).get_node()
    if stored.get_type_name() != "Constant":
        raise ValueError(f"the weight of {node.get_friendly_name()} is no constant")
    make, weight = ov.opset13, np.asarray(stored.data, np.float32)
    outputs, groups = scales.weight_scale.shape
    if weight.shape[0] != outputs or weight[0].size % groups:
        found = f"the weight {list(weight.shape)} of {node.get_friendly_name()}"
        raise ValueError(f"scales {[outputs, groups]} for {found}")
    shape = [outputs, groups, weight[0].size // groups] if groups > 1 else list(weight.shape)
    whole = _constant(integers(weight, scales), shape, scales.bits)
    whole.set_friendly_name(stored.get_friendly_name())
    factor = scales.weight_scale.reshape(outputs, groups, *(1,) * (len(shape) - 2))
    if groups == 1:
        return make.multiply(make.convert(whole, "f32"), make.constant(factor)).output(0)
    half = np.maximum(factor, np.finfo(np.float16).smallest_subnormal).astype(np.float16)  # many: they take up room
    scaled = make.multiply(make.convert(whole, "f16"), make.constant(half))
    joined = make.reshape(scaled, make.constant(np.array(weight.shape, np.int64)), False)
    return make.convert(joined, "f32").output(0)


def _constant(values: Any, shape: list[int], bits: int) -> Any:
    if bits == 8:
        return ov.opset13.constant(values.reshape(shape))
    return ov.opset13.constant(ov.Tensor(pack(values), ov.Shape(shape), ov.Type.i4), shared_memory=False)


def _rounded(x: Any, scales: Scales, *, symmetric: bool) -> Any:
    """x rounded to 256 steps of its scale, one of which is 0."""
    assert scales.activation_scale is not None and scales.zero_point is not None
    lowest = -128 if symmetric else -scales.zero_point
    ends = [ov.opset13.constant(np.float32(step * scales.activation_scale)) for step in (lowest, lowest + _LEVELS - 1)]
    return ov.opset13.fake_quantize(x, *ends, *ends, _LEVELS).output(0)
