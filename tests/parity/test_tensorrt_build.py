"""What is exported for TensorRT, by the real parser and builder of TensorRT-RTX, which need no GPU.

Kernels are not run here; that the same files give the right embeddings is shown by ONNX Runtime.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip.errors import ExportError, TargetLoadError
from edgeclip.export.to_tensorrt import to_tensorrt
from edgeclip.manifest import Axis, Precision, Profile
from edgeclip.outcome import Job, draft
from edgeclip.quantize import graphs
from edgeclip.quantize.float_first import float_first
from edgeclip.quantize.layers import list_layers
from edgeclip.quantize.lint import check, lint
from edgeclip.quantize.produce import produce
from edgeclip.quantize.qdq import quantize_onnx
from tests import towers
from tests.towers import KINDS, Kind

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
VARIANTS: list[tuple[Kind, Precision, int]] = [
    *((kind, precision, 18) for kind in KINDS for precision in PRECISIONS),
    ("text", "fp16", 17),
    ("text", "fp16", 20),
    ("text", "w8a8", 17),
]
"""Tower, precision and opset."""
LIMIT_S = 300
SMALL = {"tower.mask", "scale", "shift", "tower.position_embedding"}
"""Matrices that may be in float32."""
NEEDS = "tensorrt_rtx is not installed: pip install 'edgeclip[tensorrt-ci]'"
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SUPPORTED = """
import json, sys
from pathlib import Path
from edgeclip.backends.trt_library import logger, trt
flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
builder = trt.Builder(logger)
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    supported = parser.supports_model_v2(path.read_bytes())
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    print(json.dumps([path.name, supported, [e.node_name() + ": " + e.desc() for e in errors]]))
"""


@cache
def made(kind: Kind, precision: Precision, opset: int = 18) -> bytes:
    """The artifact's ONNX, as export makes it."""
    tower = towers.tower_of(kind)
    if precision == "w8a8":
        model = towers.export(kind, "fp32", opset)
        return produce(model, tower, "tensorrt", precision, towers.samples(kind, 32)).files[f"{tower}.onnx"]
    return to_tensorrt(towers.export(kind, precision, opset), tower)[f"{tower}.onnx"]


def profile_of(kind: Kind, precision: Precision = "fp32") -> Profile:
    job = Job(towers.tower_of(kind), "tensorrt", precision)
    drafted = draft(job, ["x.onnx"], towers.PREPROCESS, 32, towers.CONTEXT, opset=18, libraries=())
    assert drafted.profile is not None
    return drafted.profile


def built(data: bytes, profile: Profile, precision: Precision = "fp32") -> bytes:
    """The plan, by the product's own builder."""
    pytest.importorskip("tensorrt_rtx", reason=NEEDS)
    from edgeclip.backends.trt_build import build_plan

    return build_plan(data, profile, precision=precision, limit_s=LIMIT_S)


@pytest.mark.parametrize(("kind", "precision", "opset"), VARIANTS)
def test_nothing_is_refused_by_the_lint(kind: Kind, precision: Precision, opset: int) -> None:
    assert lint(made(kind, precision, opset)) == []


def test_every_node_is_supported_at_every_opset(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NEEDS)
    for kind, precision, opset in VARIANTS:
        (tmp_path / f"{kind}-{precision}-{opset}.onnx").write_bytes(made(kind, precision, opset))
    done = subprocess.run([sys.executable, "-c", SUPPORTED, str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S)  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(VARIANTS)
    assert [(name, errors) for name, supported, errors in answers if errors or not supported] == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_is_built(kind: Kind, precision: Precision) -> None:
    data = made(kind, precision)
    assert len(built(data, profile_of(kind, precision), precision)) > len(data) // 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_embeddings_are_those_of_the_portable_model(kind: Kind, precision: Precision) -> None:
    inputs = towers.samples(kind, 4, seed=1)
    portable = towers.run(towers.export(kind, precision), inputs)
    np.testing.assert_array_equal(towers.run(made(kind, precision), inputs), portable)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_between_integer_layers_costs_nothing(kind: Kind) -> None:
    inputs, tower = towers.samples(kind, 64, seed=1), towers.tower_of(kind)
    reference = towers.run(towers.export(kind), inputs)
    [wide] = quantize_onnx(towers.export(kind), tower, towers.samples(kind, 32), symmetric=True).files.values()
    before = towers.cosines(towers.run(wide, inputs), reference)
    after = towers.cosines(towers.run(made(kind, "w8a8"), inputs), reference)
    assert (1 - after).mean() < 1.2 * (1 - before).mean() + 1e-5
    assert len(made(kind, "w8a8")) < len(wide)


@pytest.mark.parametrize(
    ("precision", "opset"), [(precision, opset) for kind, precision, opset in VARIANTS if kind == "text"]
)
def test_ends_of_texts_are_found_without_indices(precision: Precision, opset: int) -> None:
    data = made("text", precision, opset)
    assert not {"GatherND", "Range"} & {node.op_type for node in onnx.load_model_from_string(data).graph.node}
    ids = np.full((6, towers.CONTEXT), towers.EOT, np.int32)  # texts of 1, 2, 5, 9, 14 and 16 tokens
    for row, length in zip(ids, (0, 1, 4, 8, 13, 15), strict=True):
        row[:length] = 1 + np.arange(length) * 7 + length
    portable = towers.export("text", "fp16" if precision == "fp16" else "fp32", opset)
    for batch in (ids, ids[::-1].copy(), ids[:1], ids[:3, :6].copy(), ids[:1, :1].copy()):
        ours, theirs = towers.run(data, batch), towers.run(portable, batch)
        if precision == "w8a8":
            assert ((ours * theirs).sum(axis=1) > 0.99).all()
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["vit", "resnet", "repvgg"])
def test_pixels_are_converted_before_anything_reads_them(kind: Kind, precision: Precision) -> None:
    readers = [node for node in parsed(kind, precision).graph.node if "pixels" in node.input]
    assert [(node.op_type, attributes(node)["to"]) for node in readers] == [("Cast", FLOAT)]


@pytest.mark.parametrize("precision", ["fp16", "w8a8"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_could_overflow_is_in_float32_and_layers_are_not(kind: Kind, precision: Precision) -> None:
    model = parsed(kind, precision)
    types, layers = graphs.element_types(model), {layer.name for layer in list_layers(towers.export(kind))}
    for node in model.graph.node:
        kinds = {types[name] for name in node.input if types.get(name) in (FLOAT, HALF)}
        assert len(kinds) <= 1, node.name
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceSum", "Sqrt"):
            assert kinds == {FLOAT}, node.name
        if node.name in layers:
            assert kinds == {HALF}, node.name
    assert types["embeddings"] == FLOAT
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and tensor.name not in SMALL]
    assert {tensor.data_type for tensor in matrices} == {HALF} | ({TensorProto.INT8} if precision == "w8a8" else set())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_mask_is_a_number_that_half_precision_holds(precision: Precision) -> None:
    mask = next(numpy_helper.to_array(t) for t in parsed("text", precision).graph.initializer if t.name == "tower.mask")
    assert np.isfinite(mask.astype(np.float16)).all()
    assert mask.min() < -1000


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_batch_and_context_are_dynamic(kind: Kind, precision: Precision) -> None:
    [value], [result] = parsed(kind, precision).graph.input, parsed(kind, precision).graph.output
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert shape == (["batch", "context"] if kind == "text" else ["batch", 32, 32, 3])
    assert [dim.dim_param or dim.dim_value for dim in result.type.tensor_type.shape.dim] == ["batch", 32]


def test_what_export_or_quantizing_would_publish_is_looked_at_first() -> None:
    newer = onnx.version_converter.convert_version(onnx.load_model_from_string(towers.export("repvgg")), 21)
    message = "image tower: TensorRT would refuse it: opset 21: export at 17 to 20"
    with pytest.raises(ExportError, match=message):
        to_tensorrt(newer.SerializeToString(), "image")
    with pytest.raises(ExportError, match=message):
        produce(newer.SerializeToString(), "image", "tensorrt", "w8a8", towers.samples("repvgg", 32))


def parsed(kind: Kind, precision: Precision) -> Any:
    return onnx.load_model_from_string(made(kind, precision))


def attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def graph(*nodes: Any, x: int = FLOAT, shape: tuple[int | str, ...] = ("batch", 8), opset: int = 18, **tensors: Any) -> bytes:  # fmt: skip
    """A model of x to y, float [batch, 8]."""
    body = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", x, shape)],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(body, opset_imports=opsets, ir_version=10).SerializeToString())


node = helper.make_node
EIGHT = np.ones((8, 8), np.float32)
SCALE, ZERO = np.float32(0.1), np.int8(0)


def dequantized(zero: Any) -> bytes:
    return graph(
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "rounds"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], "back"),
        s=SCALE,
        z=zero,
    )


def attention() -> bytes:
    """The fused operator of opset 23, as PyTorch exports it there."""
    heads = node("Reshape", ["x", "split"], ["h"], "heads")
    fused = node("Attention", ["h", "k", "k"], ["a"], "attend", kv_num_heads=1, q_num_heads=1)
    back = node("Reshape", ["a", "join"], ["y"], "back")
    key = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    return graph(heads, fused, back, shape=(1, 8), opset=23, split=np.int64([1, 1, 8]), join=np.int64([1, 8]), k=key)


REFUSED: dict[str, tuple[bytes, str, str, str]] = {
    "asymmetric activations": (dequantized(np.int8(3)), "zero-point", "rounds", "zero point z is not 0"),
    "an integer bias": (
        graph(
            node("DequantizeLinear", ["b", "s"], ["c"], "bias"), node("Add", ["x", "c"], ["y"], "add"),
            b=np.ones(8, np.int32), s=SCALE,
        ),
        "integer-bias", "bias", "b is int32: leave biases in float",
    ),
    "dynamic quantization": (
        graph(
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "measure"),
            node("MatMulInteger", ["q", "w"], ["i"], "product"), node("Cast", ["i"], ["y"], "float", to=FLOAT),
            w=np.ones((8, 8), np.uint8),
        ),
        "operator", "measure", "DynamicQuantizeLinear is not supported",
    ),
    "unique": (
        graph(
            node("Unique", ["x"], ["u"], "distinct"), node("ReduceSum", ["u"], ["r"], "sum"),
            node("Add", ["x", "r"], ["y"], "add"),
        ),
        "operator", "distinct", "Unique is not supported",
    ),
    "sequences": (
        graph(
            node("SequenceConstruct", ["x"], ["l"], "list"), node("SequenceAt", ["l", "i"], ["y"], "first"), i=np.int64(0),
        ),
        "operator", "list", "SequenceConstruct is not supported",
    ),
    "an operator of ONNX Runtime's own": (
        graph(node("QuickGelu", ["x"], ["y"], "act", domain="com.microsoft", alpha=1.702)),
        "operator", "act", "com.microsoft.QuickGelu is unknown: use standard operators",
    ),
    "an antialiased resize": (
        graph(node("Resize", ["x", "", "s"], ["y"], "smaller", antialias=1, mode="linear"), s=np.ones(2, np.float32)),
        "antialias", "smaller", "Resize with antialiasing is not supported: resize before the model",
    ),
    "float16 times float32": (
        graph(
            node("Cast", ["x"], ["h"], "half", to=HALF), node("MatMul", ["h", "w"], ["y"], "product"), w=EIGHT,
        ),
        "mixed-types", "product", "MatMul of float and float16: cast one to the other's type",
    ),
    "float16 normalised by float32": (
        graph(
            node("Cast", ["x"], ["h"], "half", to=HALF),
            node("LayerNormalization", ["h", "g"], ["n"], "norm"), node("Cast", ["n"], ["y"], "float", to=FLOAT),
            g=np.ones(8, np.float32),
        ),
        "mixed-types", "norm", "LayerNormalization of float and float16",
    ),
    "fused attention": (attention(), "attention", "attend", "the fused Attention of opset 23 does not build: export at 17 to 20"),
    "uint8 transposed": (
        graph(
            node("Transpose", ["x"], ["t"], "turn", perm=[1, 0]), node("Transpose", ["t"], ["b"], "back", perm=[1, 0]),
            node("Cast", ["b"], ["y"], "float", to=FLOAT), x=TensorProto.UINT8,
        ),
        "integer-input", "turn", "Transpose of the uint8 x: cast it to float first",
    ),
    "a dynamic width": (
        graph(node("Relu", ["x"], ["y"], "relu"), shape=("batch", "width")),
        "dynamic-axis", "x", "axis 1 (width) is dynamic: only batch and context may be",
    ),
}  # fmt: skip
UNNAMED = ("a dynamic width", "fused attention", "float16 times float32", "float16 normalised by float32")
"""What the builder refuses without saying at which node, or by another name."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_at_export_with_node_and_cure(case: str) -> None:
    data, rule, where, advice = REFUSED[case]
    assert (where, rule) in {(finding.node, finding.rule) for finding in lint(data)}
    with pytest.raises(ExportError) as caught:
        check(data, "image tower")
    assert str(caught.value).startswith("image tower: TensorRT would refuse it: ")
    assert f"node {where}: {advice}" in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_the_builder_refuses_it_too(case: str) -> None:
    data, _, where, _ = REFUSED[case]
    with pytest.raises(TargetLoadError) as caught:
        built(data, Profile(batch=Axis(min=1, opt=2, max=4)))
    if case not in UNNAMED:
        assert where in str(caught.value)


def test_the_default_of_other_quantizers_is_refused_at_every_layer() -> None:
    [asymmetric] = quantize_onnx(towers.export("repvgg"), "image", towers.samples("repvgg", 32)).files.values()
    model = onnx.load_model_from_string(asymmetric)
    float_first(model.graph)
    data = model.SerializeToString()
    with pytest.raises(ExportError) as caught:
        check(data, "image tower")
    assert re.search(r"node \S+: zero point \S+ is not 0; .* \(and \d\d nodes more\)", str(caught.value))
    assert re.search(r"node \S+: \S+ is int32: leave biases in float; .* \(and \d nodes more\)", str(caught.value))
    with pytest.raises(TargetLoadError, match="input has type Int32 but must have type"):
        built(data, profile_of("repvgg"))
