"""Shortcuts that reparameterizing folded into kernels, taken out again before rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.quantize.layers import list_layers
from edgeclip.quantize.onnx_weights import quantize_onnx_weights
from edgeclip.quantize.shortcut import separate_shortcuts

CHANNELS = 8


def convolution(weight: np.ndarray[Any, Any], **attributes: Any) -> bytes:
    """A model of one convolution, [1, 8, 6, 6] to [1, O, …]."""
    given: dict[str, Any] = {"pads": [1, 1, 1, 1], "auto_pad": "NOTSET"} | attributes
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="block.conv", **given)
    bias = numpy_helper.from_array(np.linspace(-1, 1, len(weight), dtype=np.float32), "b")
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w"), bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    return model.SerializeToString()


def kernel(shortcut: float) -> np.ndarray[Any, Any]:
    """Small weights, and on top what passes each channel on."""
    weight = np.random.default_rng(0).normal(0, 1e-3, (CHANNELS, CHANNELS, 3, 3))
    weight[range(CHANNELS), range(CHANNELS), 1, 1] += shortcut
    return weight


def run(model: bytes) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(1, CHANNELS, 6, 6)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def learned(found: np.ndarray[Any, Any], shortcut: float) -> np.ndarray[Any, Any]:
    """What a layer does beyond passing its input on."""
    x = np.random.default_rng(1).normal(size=(1, CHANNELS, 6, 6)).astype(np.float32)
    return found - shortcut * x


def test_a_dominant_shortcut_is_taken_out_and_nothing_changes() -> None:
    model = convolution(kernel(1.0))
    separated = separate_shortcuts(model)

    operators = [node.op_type for node in onnx.load_from_string(separated).graph.node]
    assert operators == ["Conv", "Mul", "Add"]
    assert [layer.name for layer in list_layers(separated)] == ["block.conv"]
    np.testing.assert_allclose(run(separated), run(model), atol=1e-6)


def test_integers_hold_the_rest_of_the_kernel_only_without_the_shortcut() -> None:
    """The layer's own work in 8-bit weights: gone with the shortcut in the kernel, there without it."""
    model = convolution(kernel(1.0))
    wanted = learned(run(model), 1.0)
    errors = []
    for form in (model, separate_shortcuts(model)):
        rounded = run(quantize_onnx_weights(form).files["text.onnx"])
        errors.append(np.linalg.norm(learned(rounded, 1.0) - wanted) / np.linalg.norm(wanted - wanted.mean()))
    plain, separated = errors
    assert separated < 0.01 < plain
    assert plain > 10 * separated


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        pytest.param(kernel(0.002), {}, id="no dominant shortcut"),
        pytest.param(kernel(1.0), {"strides": [2, 2]}, id="strides"),
        pytest.param(kernel(1.0), {"pads": [0, 0, 0, 0]}, id="other pixels"),
        pytest.param(kernel(1.0), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, id="dilations"),
        pytest.param(kernel(1.0)[: CHANNELS // 2], {}, id="fewer channels"),
        pytest.param(kernel(1.0)[:, : CHANNELS // 2], {"group": 2}, id="groups"),
    ],
)
def test_other_convolutions_stay_as_they_are(weight: np.ndarray[Any, Any], attributes: dict[str, Any]) -> None:
    model = convolution(weight, **attributes)
    assert separate_shortcuts(model) == model
