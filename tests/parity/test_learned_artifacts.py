"""Artifacts with learned scales compute, in the engine of each target, what PyTorch computed while it trained."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeclip.errors import ExportError, UsageError
from edgeclip.manifest import Precision, Target, Tower
from edgeclip.quantize.fakequant import Scheme, learned_scales
from edgeclip.quantize.learned import with_scales
from edgeclip.quantize.learned_artifact import produce_learned
from edgeclip.quantize.made import Made
from edgeclip.quantize.scales import Learned, Scales
from tests.parity.test_learned_scales import SCHEMES, inputs, plain, rounded, run_onnx

GROUPS = Scheme("w4a16", group=32)


@cache
def trained(tower: Tower, scheme: Scheme, target: Target = "openvino") -> tuple[np.ndarray[Any, Any], Learned]:
    """What PyTorch computes with rounding, and the scales that it does so with.

    The token table is not trained with rounding; it is rounded here as the target's toolchain rounds it.
    """
    graph = rounded(tower, scheme)
    with torch.no_grad():
        if tower == "text" and target != "tensorrt":
            round_table(graph.tower.token_embedding.weight, target)
        expected = graph(torch.from_numpy(inputs(tower))).numpy()
    layers = {f"{tower}.{name}": one for name, one in learned_scales(graph.tower).items()}
    return expected, Learned(scheme.precision, scheme.symmetric, layers)


def round_table(table: Tensor, target: Target) -> None:
    """To int8, one scale a row: from −127 to 127 in ONNX; with NNCF the largest magnitude is −128, whatever its sign."""
    widest = table.gather(1, table.abs().argmax(dim=1, keepdim=True))
    scale = widest.abs() / 127 if target == "onnx" else (widest / -128).half().float()
    table.copy_((table / scale).round().clamp(-128, 127) * scale)


def run_ir(made: Made, tower: Tower) -> np.ndarray[Any, Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model(made.files[f"{tower}.xml"], made.files[f"{tower}.bin"])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    result = core.compile_model(model, "CPU", settings).create_infer_request().infer([inputs(tower)])
    return np.array(result[0])


@cache
def ir(tower: Tower, scheme: Scheme) -> Made:
    return produce_learned(plain(tower), tower, "openvino", scheme.precision, trained(tower, scheme)[1])


@pytest.mark.parametrize(
    ("tower", "scheme"),
    [
        ("image", SCHEMES["w8a8"]),
        ("image", SCHEMES["w8a8-symmetric"]),
        ("image", GROUPS),
        ("text", GROUPS),
        ("text", SCHEMES["w8a8"]),
    ],
)
def test_openvino_computes_what_was_trained(tower: Tower, scheme: Scheme) -> None:
    expected = trained(tower, scheme)[0]
    errors = np.abs(run_ir(ir(tower, scheme), tower) - expected).max(axis=1)
    unrounded = np.abs(run_onnx(plain(tower), tower) - expected).max(axis=1)
    assert errors.max() < 0.01, "a value in the middle of two steps may go either way"
    assert np.median(errors) < 5e-4 < np.median(unrounded), "scales of groups are stored in half precision"


def test_openvino_stores_what_training_rounded_to() -> None:
    """Learned integers, not those of a scale that a toolchain found."""
    import openvino

    made, learned = ir("image", GROUPS), trained("image", GROUPS)[1]
    model = openvino.Core().read_model(made.files["image.xml"], made.files["image.bin"])
    stored = [op for op in model.get_ordered_ops() if op.get_element_type() == openvino.Type.i4]
    shapes = sorted(tuple(op.get_output_shape(0)) for op in stored if op.get_type_name() == "Constant")
    grouped = [shape[:2] for shape in shapes if len(shape) == 3]
    assert grouped == sorted(one.weight_scale.shape for one in learned.layers.values() if one.weight_scale.shape[1] > 1)
    assert len(shapes) == len(learned.layers)
    assert made.quantized == {name.removeprefix("image.") for name in learned.layers}


def test_openvino_computes_with_integers() -> None:
    import openvino

    made = ir("image", SCHEMES["w8a8"])
    core = openvino.Core()
    model = core.compile_model(core.read_model(made.files["image.xml"], made.files["image.bin"]), "CPU")
    facts = [op.get_rt_info() for op in model.get_runtime_model().get_ordered_ops()]
    kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
    found = [precision for layer, precision in kinds if layer in ("Convolution", "FullyConnected")]
    assert set(found) <= {"u8", "i8"} and len(found) >= len(made.quantized)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_onnx_computes_what_was_trained(tower: Tower, scheme: str) -> None:
    expected, learned = trained(tower, SCHEMES[scheme], "onnx")
    made = produce_learned(plain(tower), tower, "onnx", learned.precision, learned)
    got = run_onnx(made.files[f"{tower}.onnx"], tower, qdq_matmulnbits_accuracy_level="1")
    assert np.abs(got - expected).max() < 3e-3
    assert made.quantized == {name.removeprefix(f"{tower}.") for name in learned.layers}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_tensorrt_rounds_weights_as_trained(tower: Tower) -> None:
    """The integers are those of training; between them half precision may take a value to the next step."""
    expected, learned = trained(tower, SCHEMES["w8a8-symmetric"], "tensorrt")
    made = produce_learned(plain(tower), tower, "tensorrt", "w8a8", learned)
    got = run_onnx(made.files[f"{tower}.onnx"], tower)
    assert (got * expected).sum(axis=1).min() > 0.9995
    assert made.quantized == {name.removeprefix(f"{tower}.") for name in learned.layers}
    exact = with_scales(plain(tower), learned.tower(tower), symmetric=True)
    stored, wanted = whole_numbers(made, tower), whole_numbers(exact, tower)
    assert stored.keys() == wanted.keys()
    assert all(np.array_equal(stored[name], wanted[name]) for name in wanted)


def whole_numbers(made: Made, tower: Tower) -> dict[str, np.ndarray[Any, Any]]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(made.files[f"{tower}.onnx"]).graph
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("/weight_int8")}


def test_the_token_table_is_stored_in_int8_but_not_for_tensorrt() -> None:
    import onnx

    learned = trained("text", SCHEMES["w8a8-symmetric"])[1]
    kinds = {}
    for target in ("onnx", "tensorrt"):
        made = produce_learned(plain("text"), "text", target, "w8a8", learned)
        graph = onnx.load_from_string(made.files["text.onnx"]).graph
        table = next(
            tensor for tensor in graph.initializer if "token_embedding" in tensor.name and len(tensor.dims) == 2
        )
        kinds[target] = table.data_type
    assert kinds == {"onnx": onnx.TensorProto.INT8, "tensorrt": onnx.TensorProto.FLOAT16}


def test_a_layer_that_is_kept_stays_in_floating_point() -> None:
    learned = trained("image", SCHEMES["w8a8"])[1]
    made = produce_learned(plain("image"), "image", "onnx", "w8a8", learned, frozenset({"stem.spatial.conv"}))
    assert made.quantized == {name.removeprefix("image.") for name in learned.layers} - {"stem.spatial.conv"}


@pytest.mark.parametrize("precision", ["w8a16", "w4a16"])
def test_another_precision_is_refused(precision: Precision) -> None:
    with pytest.raises(UsageError, match=f"has learned scales for w8a8, not for {precision} .--precision w8a8"):
        produce_learned(plain("image"), "image", "openvino", precision, trained("image", SCHEMES["w8a8"])[1])


def test_zero_points_are_refused_for_tensorrt() -> None:
    with pytest.raises(UsageError, match=r"have zero points, target tensorrt has none .fine-tune with quantize.symm"):
        produce_learned(plain("image"), "image", "tensorrt", "w8a8", trained("image", SCHEMES["w8a8"])[1])


def test_scales_that_do_not_fit_are_refused_by_the_child() -> None:
    wrong = Learned("w4a16", False, {"image.pool.projection": Scales(np.ones((9, 1), np.float32), bits=4)})
    with pytest.raises(ExportError, match=r"scales \[9, 1\] for the weight \[8, 24\] of pool.projection"):
        produce_learned(plain("image"), "image", "openvino", "w4a16", wrong)


def test_a_layer_that_is_not_there_is_refused_by_the_child() -> None:
    wrong = Learned("w4a16", False, {"image.nothing": Scales(np.ones((8, 1), np.float32), bits=4)})
    with pytest.raises(ExportError, match="no layer is named nothing"):
        produce_learned(plain("image"), "image", "openvino", "w4a16", wrong)
