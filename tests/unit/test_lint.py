"""What TensorRT would refuse is found, with the node's name and what to do about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.errors import ExportError
from edgeclip.quantize.lint import Finding, check, lint

INT8, UINT8, ONE = np.int8(0), np.uint8(0), np.float32(0.1)
WEIGHT = np.ones((4, 4), np.int8)
node = helper.make_node


def model(*nodes: Any, opset: int = 17, shape: tuple[int | str, ...] = ("batch", 4), x: int = TensorProto.FLOAT, **constants: Any) -> bytes:  # fmt: skip
    """A graph of x to y."""
    inputs = [helper.make_tensor_value_info("x", x, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def conversions(scale: Any = ONE, zero: Any = INT8) -> bytes:
    """x, quantized and dequantized."""
    nodes = (
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "to"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], "from"),
    )
    return model(*nodes, s=scale, z=zero)


def weighted(op: str, axis: int, scales: Any, **attributes: Any) -> bytes:
    """A layer named `layer` whose weight is dequantized."""
    nodes = (
        node("DequantizeLinear", ["w", "s"], ["v"], "convert", axis=axis),
        node(op, ["x", "v"], ["y"], "layer", **attributes),
    )
    return model(*nodes, w=WEIGHT, s=np.float32(scales))


def only(found: list[Finding]) -> tuple[str, str]:
    """Rule and node of findings that all agree on the rule."""
    assert len({finding.rule for finding in found}) == 1, found
    return found[0].rule, found[0].node


def test_a_sound_graph_has_no_findings() -> None:
    assert lint(conversions()) == []
    assert lint(weighted("MatMul", 1, [0.1] * 4)) == []
    assert lint(weighted("Gemm", 0, [0.1] * 4, transB=1)) == []
    assert lint(weighted("MatMul", 0, 0.1)) == []
    assert lint(model(node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), x=TensorProto.UINT8)) == []
    assert lint(model(node("Gelu", ["x"], ["y"], domain="com.microsoft"))) == []


@pytest.mark.parametrize("opset", [16, 21])
def test_opset(opset: int) -> None:
    [finding] = lint(model(node("Relu", ["x"], ["y"]), opset=opset))
    assert finding == Finding("", "opset", f"opset {opset}: export at 17 to 20")


@pytest.mark.parametrize(("axis", "shown"), [("width", "width"), (None, "without a name")])
def test_dynamic_axis(axis: str | None, shown: str) -> None:
    [finding] = lint(model(node("Relu", ["x"], ["y"]), shape=("batch", axis)))  # type: ignore[arg-type]
    assert finding == Finding("x", "dynamic-axis", f"axis 1 ({shown}) is dynamic: only batch and context may be")


@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "SequenceAt", "Unique"])  # fmt: skip
def test_operator(op: str) -> None:
    found = [f for f in lint(model(node(op, ["x"], ["y"], "here"))) if f.rule != "types"]
    assert [(f.node, f.rule) for f in found] == [("here", "operator")]
    assert f"{op} is not supported" in found[0].advice


def test_types() -> None:
    [finding] = [f for f in lint(model(node("QLinearConv", ["x"], ["y"], "here"))) if f.rule == "types"]
    assert finding.node == ""
    assert "the graph's types contradict each other" in finding.advice


def test_operator_of_another_domain() -> None:
    [finding] = lint(model(node("QuickGelu", ["x"], ["y"], "here", domain="com.microsoft")))
    assert finding == Finding("here", "operator", "com.microsoft.QuickGelu is unknown: use standard operators")


def test_attention() -> None:
    [finding] = lint(model(node("Attention", ["x", "x", "x"], ["y"], "here")))
    assert (finding.node, finding.rule) == ("here", "attention")


def test_rows_by_index() -> None:
    [finding] = lint(model(node("GatherND", ["x", "i"], ["y"], "here"), i=np.zeros((2, 1), np.int64)))
    assert (finding.node, finding.rule) == ("here", "rows")


def test_antialias() -> None:
    resize = node("Resize", ["x", "", "s"], ["y"], "here", antialias=1, mode="cubic")
    assert only(lint(model(resize, opset=18, s=np.ones(2, np.float32)))) == ("antialias", "here")
    plain = node("Resize", ["x", "", "s"], ["y"], "here", mode="cubic")
    assert lint(model(plain, opset=18, s=np.ones(2, np.float32))) == []


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf])
def test_scale(scale: float) -> None:
    assert only(lint(conversions(np.float32(scale)))) == ("scale", "to")


def test_a_scale_that_is_computed() -> None:
    nodes = (node("Abs", ["c"], ["s"], "abs"), node("QuantizeLinear", ["x", "s", "z"], ["q"], "to"), node("DequantizeLinear", ["q", "c", "z"], ["y"], "from"))  # fmt: skip
    [finding] = lint(model(*nodes, c=ONE, z=INT8))
    assert finding == Finding("to", "scale", "scale s is computed: it must be a constant")


@pytest.mark.parametrize(
    ("zero", "advice"),
    [
        (np.int8(3), "zero point z is not 0"),
        (np.uint8(128), "zero point z is not 0"),
        (UINT8, "uint8, which saturates"),
    ],
)
def test_zero_point(zero: Any, advice: str) -> None:
    found = lint(conversions(zero=zero))
    assert [(f.node, f.rule) for f in found] == [("to", "zero-point"), ("from", "zero-point")]
    assert advice in found[0].advice


def test_a_zero_point_left_out_means_uint8() -> None:
    nodes = (node("QuantizeLinear", ["x", "s"], ["q"], "to"), node("DequantizeLinear", ["q", "s"], ["y"], "from"))
    found = lint(model(*nodes, s=ONE))
    assert [(f.node, f.rule) for f in found] == [("to", "zero-point"), ("from", "zero-point")]


def test_integer_bias() -> None:
    nodes = (node("DequantizeLinear", ["b", "s"], ["c"], "bias"), node("Add", ["x", "c"], ["y"], "add"))
    assert only(lint(model(*nodes, b=np.ones(4, np.int32), s=ONE))) == ("integer-bias", "bias")


@pytest.mark.parametrize(("op", "axis", "attributes"), [("MatMul", 0, {}), ("Gemm", 1, {"transB": 1}), ("Gemm", 0, {})])
def test_weight_axis(op: str, axis: int, attributes: dict[str, int]) -> None:
    [finding] = lint(weighted(op, axis, [0.1] * 4, **attributes))
    wanted = 1 - axis
    assert finding == Finding("layer", "weight-axis", f"scales of w lie on axis {axis}, output channels on {wanted}")


def test_integer_input() -> None:
    nodes = (node("Transpose", ["x"], ["t"], "turn"), node("Cast", ["t"], ["y"], to=TensorProto.FLOAT))
    [finding] = lint(model(*nodes, x=TensorProto.UINT8))
    assert finding == Finding("turn", "integer-input", "Transpose of the uint8 x: cast it to float first")


def test_codes_that_are_not_dequantized() -> None:
    nodes = (node("Cast", ["w"], ["v"], "cast", to=TensorProto.FLOAT), node("MatMul", ["x", "v"], ["y"], "layer"))
    [finding] = lint(model(*nodes, w=WEIGHT))
    assert finding == Finding("cast", "integer-input", "Cast of the int8 w: put DequantizeLinear in between")


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Add"])
def test_mixed_types(op: str) -> None:
    [finding] = lint(model(node(op, ["x", "w"], ["y"], "here"), w=np.ones((4, 4), np.float16)))
    assert finding == Finding("here", "mixed-types", f"{op} of float and float16: cast one to the other's type")


def test_mixed_types_of_computed_values() -> None:
    nodes = (node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["y"], "here"))
    assert only(lint(model(*nodes, w=np.ones((4, 4), np.float32)))) == ("mixed-types", "here")


@pytest.mark.parametrize("op", ["Concat", "Where", "Max", "LayerNormalization"])
def test_mixed_types_of_every_operator(op: str) -> None:
    half, yes = np.ones((4, 4), np.float16), np.ones(4, np.bool_)
    inputs = ["c", "x", "w"] if op == "Where" else ["x", "w"]
    attributes = {"axis": 0} if op == "Concat" else {}
    assert only(lint(model(node(op, inputs, ["y"], "here", **attributes), w=half, c=yes))) == ("mixed-types", "here")


def test_a_type_that_an_operator_has_not_at_this_opset() -> None:
    nodes = (
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("QuantizeLinear", ["h", "s", "z"], ["q"], "to"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], "from"),
    )
    [finding] = lint(model(*nodes, s=ONE, z=INT8))
    advice = "QuantizeLinear takes no float16 at this opset: cast it, or export at a newer one"
    assert finding == Finding("to", "type", advice)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_constants_that_are_not_finite(value: float, dtype: Any) -> None:
    nodes = (
        node("Cast", ["x"], ["h"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        node("Add", ["h", "mask"], ["m"], "here"),
        node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    )
    [finding] = lint(model(*nodes, mask=np.array([0, value, 0, 0], dtype)))
    advice = "mask holds infinity or NaN: use a finite number, for masks -10000"
    assert finding == Finding("here", "not-finite", advice)


@pytest.mark.parametrize("op", ["Softmax", "LayerNormalization", "ReduceSum", "ReduceL2"])
def test_half_precision_that_overflows(op: str) -> None:
    inputs = ["h", "g"] if op == "LayerNormalization" else ["h"]
    nodes = (
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node(op, inputs, ["m"], "here"),
        node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    )
    [finding] = lint(model(*nodes, g=np.ones(4, np.float16)))
    assert (finding.node, finding.rule) == ("here", "half-precision")
    assert f"{op} overflows in float16: cast to float before it" in finding.advice


def test_a_node_without_a_name_is_named_by_what_it_makes() -> None:
    [finding] = lint(model(node("QuickGelu", ["x"], ["y"], domain="com.microsoft")))
    assert finding.node == "y"


def test_a_refusal_names_the_first_node_of_each_rule_and_counts_the_others() -> None:
    half = np.ones((4, 4), np.float16)
    nodes = [
        node("Add", ["x", "h"], ["a"], "first"),
        node("Mul", ["x", "h"], ["b"], "second"),
        node("Sub", ["x", "h"], ["y"], "third"),
    ]
    with pytest.raises(ExportError) as caught:
        check(model(*nodes, opset=21, h=half), "text tower")
    assert str(caught.value) == (
        "text tower: TensorRT would refuse it: opset 21: export at 17 to 20; "
        "node first: Add of float and float16: cast one to the other's type (and 2 nodes more)"
    )


def test_what_is_not_refused_passes() -> None:
    check(conversions(), "text tower")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        lint(b"plan")
