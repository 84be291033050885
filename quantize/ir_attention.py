"""Attention as OpenVINO runs it best, without a change to what it computes. Of the child process only.

The engine makes one kernel of attention, and of what stands between its products. A transposition of keys that is part
of a product's own goes into it, and so does rounding that comes directly after the second product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import ir_graph

_HEADS_FIRST = [0, 2, 1, 3]
_KEYS = [0, 2, 3, 1]
_VALUE = ("Transpose", "Reshape", "Add", "MatMul")
"""From the second product back to the layer that makes values."""


def turn_keys(model: Any) -> None:
    """Let products of queries and keys transpose the keys themselves; the model is changed.

    Given: MatMul(q, Transpose(k [B, T, H, d], 0231)). Result: MatMul(q, Transpose(k, 0213), transpose_b).
    """
    make = ov.opset13
    for node in ir_graph.layers(model):
        keys = node.input_value(1).get_node()
        if node.get_type_name() != "MatMul" or ir_graph.order_of(keys) != _KEYS:
            continue
        options = node.get_attributes()
        if options["transpose_b"]:
            continue
        turned = make.transpose(keys.input_value(0), make.constant(np.array(_HEADS_FIRST)))
        ir_graph.replace(node, make.matmul(node.input_value(0), turned, options["transpose_a"], True))


def round_sooner(model: Any) -> None:
    """Round what attention makes where it is made; the model is changed.

    NNCF rounds it behind a smoothing factor a channel, which is moved into the weights and the bias that make the
    values.

    Given: MatMul(p, v) → Transpose → Reshape → Multiply → FakeQuantize.
    Result: MatMul(p, v') → FakeQuantize → Transpose → Reshape.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            _round_sooner(node)


def _round_sooner(rounding: Any) -> None:
    chain = ir_graph.back(rounding, ("Multiply", "Reshape", "Transpose", "MatMul"))
    if chain is None or not _is_one_range(rounding):
        return
    smoothing, reshape, transpose, product = chain
    value = ir_graph.back(product, _VALUE, first=1)
    if value is None or any(ir_graph.order_of(each) != _HEADS_FIRST for each in (transpose, value[0])):
        return
    factors = ir_graph.values_of(smoothing.input_value(1).get_node())
    if factors is None or not _scale(value, factors.reshape(-1)):
        return
    make = ov.opset13
    ends = [make.constant(values.reshape(())) for values in _ends(rounding)]
    rounded = make.fake_quantize(product, *ends, rounding.get_attributes()["levels"])
    transpose.input(0).replace_source_output(rounded.output(0))
    rounding.output(0).replace(reshape.output(0))


def _ends(rounding: Any) -> list[NDArray[np.float32]]:
    """Where the ranges of input and output begin and end."""
    return [np.asarray(rounding.input_value(i).get_node().data, np.float32) for i in range(1, 5)]


def _is_one_range(rounding: Any) -> bool:
    """Whether all channels have the same."""
    return all(values.size == 1 for values in _ends(rounding))


def _scale(value: list[Any], factors: NDArray[np.float32]) -> bool:
    """Multiply the channels of values [B, T, D]; False where that cannot be done, or others see them."""
    _, _, add, layer = value
    weight = layer.input_value(1).get_node()
    if weight.get_type_name() != "Multiply" or any(ir_graph.only_user(each) is None for each in (*value, weight)):
        return False
    steps, bias = (ir_graph.values_of(each.input_value(1).get_node()) for each in (weight, add))
    if steps is None or bias is None or bias.size not in (1, factors.size):
        return False
    if steps.size != factors.size:
        return False
    weight.input(1).replace_source_output(_constant(steps * factors.reshape(steps.shape)))
    add.input(1).replace_source_output(_constant(bias.reshape(-1)[None, None] * factors))
    return True


def _constant(values: NDArray[np.float32]) -> Any:
    return ov.opset13.constant(values.astype(np.float32)).output(0)
