"""Half precision as single precision, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.errors import ExportError
from edgeclip.quantize.widen import widen
from tests import towers
from tests.towers import Kind


def floats(model: bytes) -> dict[str, np.ndarray]:
    """The float constants of a model."""
    parsed = onnx.load_model_from_string(model)
    arrays = {t.name: numpy_helper.to_array(t) for t in parsed.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def rounded(single: bytes, half: bytes) -> bytes:
    """The fp32 model with the constants that are fp16 in the other one as they are there."""
    parsed = onnx.load_model_from_string(single)
    other = {name: array for name, array in floats(half).items() if array.dtype == np.float16}
    present = {tensor.name for tensor in parsed.graph.initializer}
    for name in other.keys() - present:  # shared with another constant there, or of another name
        assert np.isin(other[name], (0, 0.25)).all(), f"{name}: rounding may have changed it"
    for tensor in parsed.graph.initializer:
        if tensor.name in other:
            tensor.CopyFrom(numpy_helper.from_array(other[tensor.name].astype(np.float32), tensor.name))
    return parsed.SerializeToString()


@pytest.mark.parametrize("kind", ["repvgg", "text"])
def test_it_computes_what_fp32_does_with_the_rounded_constants(kind: Kind) -> None:
    single, half = towers.export(kind), towers.export(kind, "fp16")
    inputs = towers.samples(kind, 8)
    expected = towers.run(rounded(single, half), inputs)
    assert np.abs(towers.run(widen(half), inputs) - expected).max() < 1e-6


@pytest.mark.parametrize("kind", ["repvgg", "text"])
def test_nothing_of_half_precision_is_left(kind: Kind) -> None:
    wide = onnx.load_model_from_string(widen(towers.export(kind, "fp16")))
    typed = onnx.shape_inference.infer_shapes(wide).graph
    kinds = {v.type.tensor_type.elem_type for v in typed.value_info} | {t.data_type for t in wide.graph.initializer}
    assert TensorProto.FLOAT16 not in kinds
    operators = [node.op_type for node in wide.graph.node]
    single = onnx.load_model_from_string(towers.export(kind))
    assert operators.count("Cast") == sum(node.op_type == "Cast" for node in single.graph.node)


def test_what_is_fp32_comes_back_as_it_is() -> None:
    model = towers.export("repvgg")
    assert widen(model) is model
    wide = widen(towers.export("repvgg", "fp16"))
    assert widen(wide) is wide


def test_the_same_bytes_each_time() -> None:
    half = towers.export("text", "fp16")
    assert widen(half) == widen(half)


def half_graph(*nodes: object) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    made = helper.make_graph(list(nodes), "g", [x], [y])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def test_inputs_and_constants_of_nodes_are_widened() -> None:
    value = numpy_helper.from_array(np.array([0.1, 2], np.float16))
    wide = widen(
        half_graph(
            helper.make_node("Constant", [], ["c"], value=value),
            helper.make_node("Add", ["x", "c"], ["h"]),
            helper.make_node("Cast", ["h"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT16),
            helper.make_node("Relu", ["narrow"], ["y"]),
        )
    )
    assert [node.op_type for node in onnx.load_model_from_string(wide).graph.node] == ["Constant", "Add", "Relu"]
    np.testing.assert_array_equal(towers.run(wide, np.float32([[1, -3]])), [[1 + np.float32(np.float16(0.1)), 0]])


def test_casts_from_integers_stay() -> None:
    nodes = (
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["f"], ["y"], to=TensorProto.FLOAT),
    )
    assert towers.run(widen(half_graph(*nodes)), np.float32([[1.7, -3.2]])).tolist() == [[1, -3]]


def test_a_graph_that_cannot_be_fp32_is_refused() -> None:
    node = helper.make_node("EyeLike", ["x"], ["h"], dtype=TensorProto.FLOAT16)
    with pytest.raises(ExportError, match="the model does not type-check in fp32: .*Add"):
        widen(half_graph(node, helper.make_node("Add", ["x", "h"], ["y"])))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        widen(b"half")
