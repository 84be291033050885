"""Learned scales in ONNX: what engines compute is what PyTorch computed while it trained."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeclip.errors import UsageError
from edgeclip.export.demo_checkpoint import MEAN, STD
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.to_onnx import to_onnx
from edgeclip.manifest import Preprocess, Tower
from edgeclip.quantize.fakequant import Scheme, attach, learned_scales, observe
from edgeclip.quantize.layers import layers_of
from edgeclip.quantize.learned import with_scales
from edgeclip.quantize.made import Made
from edgeclip.quantize.scales import Scales, integers
from edgeclip.train.models import Clip, ClipConfig, RepVggConfig, TextConfig

SIDE, WORDS, CONTEXT = 32, 40, 8
PREPROCESS = Preprocess(size=SIDE, mean=MEAN, std=STD)
EXACT = 1e-5
TOLERANCE = {"w8a8": 3e-3, "w8a8-": 3e-3, "w8a16": 1e-4, "w4a16": 1e-4}
"""Integer kernels may round a value at the middle of two steps the other way, and each step is 1/255 of a range."""
SCHEMES = {
    "w8a8": Scheme("w8a8"),
    "w8a8-symmetric": Scheme("w8a8", symmetric=True),
    "w8a16": Scheme("w8a16"),
    "w4a16": Scheme("w4a16"),
    "w4a16-groups": Scheme("w4a16", group=8),
}
TOWERS: tuple[Tower, ...] = ("image", "text")


@cache
def clip() -> Clip:
    text = TextConfig(
        width=16, layers=2, heads=2, context_length=CONTEXT, vocab_size=WORDS, mlp_width=32, activation="gelu"
    )
    image = RepVggConfig(stem=8, widths=(16, 24), depths=(1, 2), strides=(2, 2))
    torch.manual_seed(0)
    model = Clip(ClipConfig(name="tiny", embed_dim=8, image_size=SIDE, image=image, text=text)).train()
    with torch.no_grad():
        for _ in range(10):
            model.encode_image(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def inputs(tower: Tower) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if tower == "image":
        return rng.integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    return rng.integers(0, WORDS, (6, CONTEXT), dtype=np.int32)


@cache
def plain(tower: Tower) -> bytes:
    return to_onnx(tower_graph(clip(), tower, PREPROCESS), tower, example(clip(), tower))


def rounded(tower: Tower, scheme: Scheme) -> nn.Module:
    """The graph of a tower in PyTorch, with quantizers that have seen the inputs."""
    graph = tower_graph(clip(), tower, PREPROCESS)
    graph = graph if tower == "image" else tower_graph(clip_copy(), tower, PREPROCESS)
    attach(graph.tower, scheme)
    with observe(graph):
        graph(torch.from_numpy(inputs(tower)))
    return graph


def clip_copy() -> Clip:
    """The graph of the text tower holds the model's own tower."""
    model = Clip(clip().config)
    model.load_state_dict(clip().state_dict())
    return model.eval()


def made(tower: Tower, scheme: Scheme) -> tuple[Tensor, Made]:
    graph = rounded(tower, scheme)
    with torch.no_grad():
        expected = graph(torch.from_numpy(inputs(tower)))
    return expected, with_scales(plain(tower), learned_scales(graph.tower), symmetric=scheme.symmetric)


def run_onnx(model: bytes, tower: Tower, **entries: str) -> np.ndarray[Any, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: inputs(tower)})[0]
    return result


def run_openvino(model: bytes, tower: Tower) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = compiled(model).create_infer_request().infer([inputs(tower)])[0].copy()
    return result


def compiled(model: bytes) -> Any:
    """Without its dynamic quantization, which rounds activations that the model does not."""
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    return core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_model_says_what_was_trained(scheme: str, tower: Tower) -> None:
    """Every operator by itself: none is fused into another one that rounds once more."""
    expected, model = made(tower, SCHEMES[scheme])
    got = run_onnx(model.files[f"{tower}.onnx"], tower, disable_quant_qdq="1")
    assert np.abs(got - expected.numpy()).max() < EXACT
    assert np.abs(got - run_onnx(plain(tower), tower)).max() > 100 * EXACT, "rounding makes no difference"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integer_kernels_of_onnxruntime_agree(scheme: str, tower: Tower) -> None:
    """Without its default that matrix products of integer weights round their activations to 8 bits too."""
    expected, model = made(tower, SCHEMES[scheme])
    got = run_onnx(model.files[f"{tower}.onnx"], tower, qdq_matmulnbits_accuracy_level="1")
    assert np.abs(got - expected.numpy()).max() < TOLERANCE[scheme[:5]]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_openvino_agrees(scheme: str, tower: Tower) -> None:
    expected, model = made(tower, SCHEMES[scheme])
    got = run_openvino(model.files[f"{tower}.onnx"], tower)
    assert np.abs(got - expected.numpy()).max() < TOLERANCE[scheme[:5]]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-symmetric"])
def test_openvino_computes_with_integers(scheme: str, tower: Tower) -> None:
    model = made(tower, SCHEMES[scheme])[1]
    facts = [op.get_rt_info() for op in compiled(model.files[f"{tower}.onnx"]).get_runtime_model().get_ordered_ops()]
    kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
    found = [precision for layer, precision in kinds if layer in ("Convolution", "FullyConnected")]
    assert set(found) <= {"u8", "i8"} and len(found) >= len(model.quantized)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-groups"])
def test_every_layer_with_weights_is_quantized(scheme: str, tower: Tower) -> None:
    import onnx

    model = made(tower, SCHEMES[scheme])[1]
    read = onnx.load_from_string(model.files[f"{tower}.onnx"])
    assert model.quantized == {layer.name for layer in layers_of(read.graph) if layer.weighted}
    kept = [t.name for t in read.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    weights = [name for name in kept if not name.endswith("/weight_scale")]
    assert not [name for name in weights if "conv" in name or "projection" in name], "weights are there twice"


def test_four_bits_are_kept_as_small_int8() -> None:
    import onnx
    from onnx import numpy_helper

    read = onnx.load_from_string(made("text", SCHEMES["w4a16-groups"])[1].files["text.onnx"])
    whole = [numpy_helper.to_array(t) for t in read.graph.initializer if t.name.endswith("weight_int8")]
    assert len(whole) == 13 and all(one.dtype == np.int8 and one.min() >= -7 and one.max() <= 7 for one in whole)


def test_the_same_scales_give_the_same_file() -> None:
    one, two = (made("image", SCHEMES["w8a8"])[1] for _ in range(2))
    assert one == two


def test_integers_are_rounded_half_to_even_and_clamped() -> None:
    weight = np.array([[0.5, 1.5, 9.0, -9.0]], np.float32)
    assert integers(weight, Scales(np.ones((1, 1), np.float32), bits=4)).tolist() == [[0, 2, 7, -7]]


def test_a_layer_of_another_tower_is_refused() -> None:
    scales = {"transformer.blocks.0.mlp.expand": Scales(np.ones((32, 1), np.float32))}
    with pytest.raises(UsageError, match=r"transformer\.blocks\.0\.mlp\.expand: no layer with weights is named so"):
        with_scales(plain("image"), scales, symmetric=False)


def test_scales_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"projection: scales \[9, 1\] for a weight \[8, 24\]"):
        with_scales(plain("image"), {"pool.projection": Scales(np.ones((9, 1), np.float32))}, symmetric=False)


def test_a_zero_point_needs_asymmetric_activations() -> None:
    scales = {"pool.projection": Scales(np.ones((8, 1), np.float32), 0.1, 3)}
    with pytest.raises(UsageError, match="pool.projection: its zero point is 3, not 0"):
        with_scales(plain("image"), scales, symmetric=True)


def test_the_file_shrinks() -> None:
    assert len(made("image", SCHEMES["w4a16"])[1].files["image.onnx"]) < 0.5 * len(plain("image"))
