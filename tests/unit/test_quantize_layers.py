"""The layers of an exported tower, by name; weights that are not finite are refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.errors import ExportError, NonFiniteError, TargetUnavailableError, UsageError
from edgeclip.quantize.layers import LayerInfo, check_finite, check_kept, layers_of, list_layers, output_axis
from tests import towers


def graph(*nodes: object, **weights: np.ndarray) -> bytes:
    """x [batch, 4] to y, both float."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(list(nodes), "g", value[:1], value[1:], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def product(name: str = "first") -> object:
    return helper.make_node("MatMul", ["x", "w"], ["y"], name)


WEIGHT = np.ones((4, 4), np.float32)


def test_layers_carry_their_modules_names_in_the_order_of_the_graph() -> None:
    found = list_layers(towers.export("text"))
    assert found[:6] == [
        LayerInfo("transformer.blocks.0.attention.query", "MatMul", True),
        LayerInfo("transformer.blocks.0.attention.key", "MatMul", True),
        LayerInfo("transformer.blocks.0.attention.value", "MatMul", True),
        LayerInfo("transformer.blocks.0.attention", "MatMul", False),
        LayerInfo("transformer.blocks.0.attention/2", "MatMul", False),
        LayerInfo("transformer.blocks.0.attention.out", "MatMul", True),
    ]
    assert found[-1] == LayerInfo("projection", "Gemm", True)


def test_a_weight_that_is_computed_from_constants_is_a_weight() -> None:
    nodes = (
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], "convert"),
        helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["i"], "second"),
        helper.make_node("MatMul", ["i", "h"], ["y"], "third"),
    )
    model = graph(*nodes, codes=np.ones((4, 4), np.int8), scale=np.float32(1))
    assert [layer.weighted for layer in list_layers(model)] == [True, True, False]


@pytest.mark.parametrize(
    ("op", "rank", "attributes", "axis"),
    [("Conv", 4, {}, 0), ("MatMul", 2, {}, 1), ("Gemm", 2, {}, 1), ("Gemm", 2, {"transB": 1}, 0)],
)
def test_the_axis_of_output_channels(op: str, rank: int, attributes: dict[str, int], axis: int) -> None:
    assert output_axis(helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes), rank) == axis


def test_layers_that_cannot_be_told_apart_are_refused() -> None:
    twice = graph(helper.make_node("MatMul", ["x", "w"], ["h"], "same"), helper.make_node("MatMul", ["h", "w"], ["y"], "same"), w=WEIGHT)  # fmt: skip
    with pytest.raises(ExportError, match="layers cannot be told apart.*'same'"):
        list_layers(twice)
    with pytest.raises(ExportError, match="without a name"):
        list_layers(graph(product(""), w=WEIGHT))


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a"], ids=["empty", "text", "no-graph"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        list_layers(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    bad = WEIGHT.copy()
    bad[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in w \("):
        check_finite(graph(product(), w=bad, unharmed=WEIGHT))


def test_only_the_first_few_damaged_weights_are_named() -> None:
    bad = np.full((4, 4), np.nan, np.float16)
    with pytest.raises(NonFiniteError, match="in w, b, c and 2 more"):
        check_finite(graph(product(), w=bad, b=bad, c=bad, d=bad, e=bad))


def test_a_constant_s_value_is_checked_too() -> None:
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.float32([np.inf])))
    with pytest.raises(NonFiniteError, match="NaN or infinity in w"):
        check_finite(graph(node, product()))


def test_sound_weights_pass() -> None:
    check_finite(towers.export("repvgg"))


def test_a_layer_to_keep_must_exist() -> None:
    found = list_layers(graph(product(), w=WEIGHT))
    check_kept({"first"}, found)
    with pytest.raises(UsageError, match=r"no layer is named frist \(the layers are: first\)"):
        check_kept({"first", "frist"}, found)


def test_without_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TargetUnavailableError, match=r"onnx is not installed \(pip install 'edgeclip\[quantize\]'\)"):
        list_layers(b"")


def test_a_graph_without_layers_has_none() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    assert layers_of(helper.make_graph([node], "g", [], [])) == []
