"""Half precision around integer layers: what is converted, and what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.errors import ExportError
from edgeclip.quantize import graphs
from edgeclip.quantize.narrow import narrow

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
node = helper.make_node


def layer(weight_scale: float = 0.01, bias: float = 1.0) -> Any:
    """x, scaled, quantized, multiplied, biased and normalised."""
    nodes = [
        node("Mul", ["x", "f"], ["scaled"]),
        node("QuantizeLinear", ["scaled", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "t", "u"], ["v"], axis=1),
        node("MatMul", ["d", "v"], ["m"], "layer"),
        node("Add", ["m", "b"], ["a"]),
        node("Mul", ["a", "a"], ["y"]),
    ]
    tensors = {
        "f": np.float32(0.5),
        "s": np.float32(0.02),
        "z": np.int8(0),
        "w": np.full((4, 4), 100, np.int8),
        "t": np.full(4, weight_scale, np.float32),
        "u": np.zeros(4, np.int8),
        "b": np.full(4, bias, np.float32),
    }
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def narrowed(model: Any) -> dict[str, int]:
    """The types of all values afterwards; the model is sound."""
    narrow(model)
    onnx.checker.check_model(model, full_check=True)
    return graphs.element_types(model)


def test_what_comes_before_the_first_layer_and_behind_the_last_one_stays_in_single_precision() -> None:
    types = narrowed(layer())
    assert {name: types[name] for name in ("x", "scaled", "d", "v", "m", "a", "y")} == {
        "x": FLOAT,
        "scaled": FLOAT,
        "d": HALF,
        "v": HALF,
        "m": HALF,
        "a": FLOAT,
        "y": FLOAT,
    }


def test_twice_is_once() -> None:
    model = layer()
    narrow(model)
    again = onnx.ModelProto.FromString(model.SerializeToString())
    narrow(again)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_scale_that_half_precision_cannot_tell_from_0_is_its_smallest_number() -> None:
    model = layer(weight_scale=1e-9)
    narrow(model)
    scales = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "t/half")
    assert (scales == np.float16(2.0**-24)).all()


def test_a_weight_beyond_half_precision_is_refused() -> None:
    with pytest.raises(ExportError, match=r"t: half precision holds no 70000 \(use fp32\)"):
        narrow(layer(weight_scale=7e4))
