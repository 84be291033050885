"""8-bit ONNX files of every kind of tower: as close to fp32 as 8 bits are, in ONNX Runtime and in OpenVINO.

Bounds are means and minima of cosines on inputs that no range was measured on. The weights are random, which rounding
hurts more than trained ones: the deeper the tower, the more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgeclip.errors import ExportError, NonFiniteError, TargetUnavailableError, UsageError
from edgeclip.quantize import extremes
from edgeclip.quantize.layers import list_layers
from edgeclip.quantize.made import Made
from edgeclip.quantize.onnx_weights import quantize_onnx_weights, to_integers
from edgeclip.quantize.qdq import quantize_onnx
from tests import towers
from tests.towers import KINDS, Kind

Form = Literal["onnx", "tensorrt", "weights"]
FORMS: tuple[Form, ...] = ("onnx", "tensorrt", "weights")
BOUNDS: dict[Kind, dict[Form, tuple[float, float]]] = {
    "vit": {"onnx": (0.9995, 0.999), "tensorrt": (0.9995, 0.999), "weights": (0.9998, 0.9995)},
    "resnet": {"onnx": (0.985, 0.96), "tensorrt": (0.98, 0.95), "weights": (0.998, 0.996)},
    "repvgg": {"onnx": (0.999, 0.998), "tensorrt": (0.999, 0.998), "weights": (0.999, 0.998)},
    "text": {"onnx": (0.9985, 0.997), "tensorrt": (0.9985, 0.997), "weights": (0.999, 0.998)},
}
INTEGER_KERNELS = ("QLinearConv", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul", "DynamicQuantizeMatMul")


def produce(model: bytes, kind: Kind, form: Form, keep: frozenset[str] = frozenset()) -> Made:
    if form == "weights":
        return quantize_onnx_weights(model, keep=keep)
    inputs = towers.samples(kind, 32)
    return quantize_onnx(model, towers.tower_of(kind), inputs, keep=keep, symmetric=form == "tensorrt")


@cache
def made(kind: Kind, form: Form) -> Made:
    return produce(towers.export(kind), kind, form)


def content(result: Made) -> bytes:
    [data] = result.files.values()
    return data


def held_out(kind: Kind) -> NDArray[Any]:
    return towers.samples(kind, 16, seed=1)


def nodes(data: bytes) -> dict[str, Any]:
    """A model's nodes by name."""
    return {node.name: node for node in onnx.load_model_from_string(data).graph.node}


def damaged(model: bytes, name: str) -> bytes:
    """With a NaN in the weights of a layer."""
    parsed = onnx.load_model_from_string(model)
    weight = next(n.input[1] for n in parsed.graph.node if n.name == name)
    tensor = next(t for t in parsed.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return parsed.SerializeToString()


def names(kind: Kind, *, weighted: bool = True) -> list[str]:
    return [layer.name for layer in list_layers(towers.export(kind)) if layer.weighted or not weighted]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_close_to_fp32(kind: Kind, form: Form) -> None:
    inputs = held_out(kind)
    reference, data = towers.run(towers.export(kind), inputs), content(made(kind, form))
    mean, lowest = BOUNDS[kind][form]
    for engine in (towers.run, towers.run_openvino):
        found = towers.cosines(engine(data, inputs), reference)
        assert found.mean() >= mean and found.min() >= lowest, (engine.__name__, found.mean(), found.min())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_one_sound_model_like_the_original(kind: Kind, form: Form) -> None:
    result = made(kind, form)
    assert set(result.files) == {f"{towers.tower_of(kind)}.onnx"}
    model, original = (onnx.load_model_from_string(data) for data in (content(result), towers.export(kind)))
    onnx.checker.check_model(model, full_check=True)
    assert [o.SerializeToString() for o in model.opset_import] == [o.SerializeToString() for o in original.opset_import]
    assert model.graph.input == original.graph.input and model.graph.output == original.graph.output
    assert (model.producer_name, model.producer_version) == (original.producer_name, original.producer_version)
    assert not model.metadata_props and not model.graph.value_info
    assert {t.data_location for t in model.graph.initializer} == {TensorProto.DEFAULT}


@pytest.mark.parametrize("kind", KINDS)
def test_all_weighted_layers_but_the_projection_and_patches_compute_in_integers(kind: Kind) -> None:
    found = names(kind)
    spared = {found[-1], *(["patch_embedding"] if kind == "vit" else [])}
    assert made(kind, "onnx").quantized == set(found) - spared


@pytest.mark.parametrize("kind", KINDS)
def test_for_tensorrt_the_first_convolution_stays_in_float_too(kind: Kind) -> None:
    first = {names(kind)[0]} if kind != "text" else set()
    assert made(kind, "tensorrt").quantized == set(names(kind)[:-1]) - first


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_runs_integer_kernels(kind: Kind, tmp_path: Path) -> None:
    import onnxruntime as ort

    result = made(kind, "onnx")
    options = towers.session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(content(result), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert sum(kernels[name] for name in INTEGER_KERNELS) == len(result.quantized), kernels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_a_scale_for_each_output_channel(kind: Kind, form: Form) -> None:
    result = made(kind, form)
    graph = onnx.load_model_from_string(content(result)).graph
    made_by = {node.output[0]: node for node in graph.node}
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for name in result.quantized:
        node = nodes(content(result))[name]
        converted = made_by[node.input[1]]
        channels = {"Conv": lambda s: s[0], "Gemm": lambda s: s[0], "MatMul": lambda s: s[-1]}[node.op_type]
        codes = made_by[converted.input[0]].input[0] if form == "weights" else converted.input[0]
        assert np.prod(shapes[converted.input[1]]) == channels(shapes[codes]), name


@pytest.mark.parametrize("form", FORMS)
def test_windows_of_kernels_keep_their_sums(form: Form) -> None:
    exact = {t.name: t for t in onnx.load_model_from_string(towers.export("repvgg")).graph.initializer}
    graph = onnx.load_model_from_string(content(made("repvgg", form))).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    checked = 0
    for name, codes in tensors.items():
        if codes.dtype != np.int8 or codes.ndim != 4:
            continue
        kernel = numpy_helper.to_array(exact[re.sub(r"(_quantized|\.int8\.0)$", "", name)]).astype(np.float64)
        scale = np.abs(kernel).max((1, 2, 3), keepdims=True) / 127
        assert np.abs(codes.sum((2, 3), dtype=np.int64) - (kernel / scale).sum((2, 3))).max() <= 0.5 + 1e-3
        checked += 1
    assert checked >= len(names("repvgg")) - 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_to_keep_are_left_as_they_were(kind: Kind, form: Form) -> None:
    model, everything = towers.export(kind), made(kind, form).quantized
    kept = frozenset(sorted(everything)[::2])
    result = produce(model, kind, form, kept)
    spared = everything - kept - result.quantized
    assert result.quantized <= everything - kept
    assert not spared or (form == "onnx" and kind in ("resnet", "repvgg"))  # what feeds a convolution that is kept
    original, now = nodes(model), nodes(content(result))
    assert all(now[name].input[1] == original[name].input[1] for name in kept)
    assert all(now[name].attribute == original[name].attribute for name in kept)


def test_a_convolution_to_keep_is_fed_by_one_that_is_not_rounded() -> None:
    model = towers.export("repvgg")
    convolutions = [node.name for node in nodes(model).values() if node.op_type == "Conv"]
    result = produce(model, "repvgg", "onnx", frozenset({convolutions[2]}))
    assert set(convolutions) - result.quantized == set(convolutions[1:3])
    reads = nodes(content(result))[convolutions[2]].input[0]
    made_by = {name: node for node in onnx.load_from_string(content(result)).graph.node for name in node.output}
    assert made_by[reads].op_type == "Relu"
    assert made_by[made_by[reads].input[0]].name == convolutions[1]


@pytest.mark.parametrize("form", ["onnx", "tensorrt"])
def test_a_layer_to_keep_reads_its_input_unrounded_where_others_read_it_rounded(form: Form) -> None:
    query = "transformer.blocks.0.attention.query"
    result = produce(towers.export("vit"), "vit", form, frozenset({query}))
    assert nodes(content(result))[query].input[0] == nodes(towers.export("vit"))[query].input[0]
    assert "transformer.blocks.0.attention.key" in result.quantized


@pytest.mark.parametrize("kind", ["repvgg", "text"])
@pytest.mark.parametrize("form", FORMS)
def test_with_every_layer_kept_it_is_fp32_but_for_the_token_table(kind: Kind, form: Form) -> None:
    result = produce(towers.export(kind), kind, form, frozenset(names(kind, weighted=False)))
    assert result.quantized == frozenset()
    inputs = held_out(kind)
    apart = np.abs(towers.run(content(result), inputs) - towers.run(towers.export(kind), inputs)).max()
    assert apart < (1e-6 if kind == "repvgg" or form == "tensorrt" else 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_to_keep_must_exist(form: Form) -> None:
    with pytest.raises(UsageError, match=r"no layer is named stem.colour \(the layers are: stem.spatial.conv, "):
        produce(towers.export("repvgg"), "repvgg", form, frozenset({"stem.colour"}))


@pytest.mark.parametrize("form", FORMS)
def test_damaged_weights_are_refused_before_anything_is_measured(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(extremes, "measure", never)
    model = damaged(towers.export("repvgg"), "stages.0.0.spatial.conv")
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in tower.stages.0.0.spatial.conv.weight"):
        produce(model, "repvgg", form)


def test_activations_that_overflow_are_refused() -> None:
    parsed = onnx.load_model_from_string(towers.export("repvgg"))
    for tensor in parsed.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e20), tensor.name))
    with pytest.raises(NonFiniteError, match="NaN or infinity in the activations "):
        produce(parsed.SerializeToString(), "repvgg", "onnx")


def test_without_samples_there_are_no_ranges() -> None:
    with pytest.raises(UsageError, match="no samples to calibrate on"):
        quantize_onnx(towers.export("repvgg"), "image", towers.samples("repvgg", 0))


@pytest.mark.parametrize(
    ("inputs", "shown"),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), r"samples are uint8 \[2, 3, 32, 32\], the graph takes uint8 \[N, 32, 32, 3\]"),
        (np.zeros((2, 32, 32, 3), np.float32), "samples are float32"),
        (np.zeros((32, 32, 3), np.uint8), r"samples are uint8 \[32, 32, 3\]"),
    ],
)  # fmt: skip
def test_samples_are_what_the_graph_takes(inputs: NDArray[Any], shown: str) -> None:
    with pytest.raises(UsageError, match=shown):
        quantize_onnx(towers.export("repvgg"), "image", inputs)


def test_without_onnxruntime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        TargetUnavailableError, match=r"onnxruntime is not installed \(pip install 'edgeclip\[quantize\]'"
    ):
        quantize_onnx(towers.export("repvgg"), "image", towers.samples("repvgg", 3, seed=5))  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_model_is_refused(form: Form) -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        produce(b"weights", "repvgg", form)


def test_nothing_is_left_behind_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    quantize_onnx(towers.export("repvgg"), "image", towers.samples("repvgg", 3, seed=6))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(towers.export("text"))
    np.save(tmp_path / "ids.npy", towers.samples("text", 32))
    script = (
        "import sys, hashlib, numpy as np; from pathlib import Path\n"
        "from edgeclip.quantize.qdq import quantize_onnx\n"
        "from edgeclip.quantize.onnx_weights import quantize_onnx_weights\n"
        "folder = Path(sys.argv[1]); model, ids = (folder / 'text.onnx').read_bytes(), np.load(folder / 'ids.npy')\n"
        "files = quantize_onnx(model, 'text', ids).files | {'weights': quantize_onnx_weights(model).files['text.onnx']}\n"
        "print([hashlib.sha256(data).hexdigest() for data in files.values()])\n"
    )
    ours = [content(made("text", "onnx")), content(made("text", "weights"))]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, env=environment)  # fmt: skip
    assert child.stdout.strip() == str([hashlib.sha256(data).hexdigest() for data in ours])


def test_ranges_are_measured_once_for_all_choices_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = towers.export("repvgg"), towers.samples("repvgg", 3, seed=8)
    first = quantize_onnx(model, "image", inputs)
    monkeypatch.setattr(extremes, "_measure", lambda *_: pytest.fail("measured again"))
    assert quantize_onnx(model, "image", inputs) == first
    quantize_onnx(model, "image", inputs, keep=frozenset({"stem.spatial.conv"}), symmetric=True)


def test_a_quarter_of_the_size() -> None:
    rng = np.random.default_rng(0)
    model = onnx.load_model_from_string(towers.export("repvgg"))
    projection = next(node for node in model.graph.node if node.op_type == "Gemm")
    projection.input[1] = "wide"  # large enough that names and nodes count for nothing
    values = rng.standard_normal((2048, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "wide"))
    data = model.SerializeToString()
    assert len(content(quantize_onnx_weights(data))) / len(data) < 0.265


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_are_within_half_a_step(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    codes, scales = to_integers(weight, axis)
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.size == weight.shape[axis]
    assert np.abs(codes).max() == 127 and (np.abs(codes * scales - weight) <= scales * 0.5001).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[1] = [0, 2, -2]
    codes, scales = to_integers(weight, 0)
    assert scales.ravel()[0] == 1 and (codes * scales == weight).all()
