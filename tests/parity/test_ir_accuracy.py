"""Integer OpenVINO IR of tiny towers: it is really integers, and says what the fp32 ONNX says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeclip.backends.ov_library import ov
from edgeclip.manifest import Precision
from edgeclip.quantize.ir import quantize_ir
from edgeclip.quantize.ir_weights import quantize_ir_weights
from edgeclip.quantize.layers import list_layers
from edgeclip.quantize.made import Made
from tests import towers
from tests.towers import Kind, cosines, export, samples, tower_of

KINDS: tuple[Kind, ...] = ("vit", "repvgg", "text")
PRECISIONS: tuple[Precision, ...] = ("w8a8", "w8a16", "w4a16")
MEAN = {"w8a8": 0.98, "w8a16": 0.999, "w4a16": 0.95}
"""Weights drawn at random have no redundancy: trained towers lose a hundredth to a tenth of that."""
every_tower = pytest.mark.parametrize("kind", KINDS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@cache
def made(kind: Kind, precision: Precision, keep: frozenset[str] = frozenset()) -> Made:
    return make(kind, precision, keep)


def make(kind: Kind, precision: Precision, keep: frozenset[str] = frozenset()) -> Made:
    tower, seen = tower_of(kind), samples(kind, 24, seed=1)
    if precision == "w8a8":
        return quantize_ir(export(kind), tower, seen, keep=keep)
    if precision == "w8a16":
        return quantize_ir_weights(export(kind), tower, bits=8, keep=keep)
    return quantize_ir_weights(export(kind), tower, bits=4, keep=keep, samples=seen[:8])


def read(result: Made) -> Any:
    xml, weights = (next(v for k, v in result.files.items() if k.endswith(end)) for end in (".xml", ".bin"))
    return ov.Core().read_model(xml, ov.Tensor(np.frombuffer(weights, np.uint8)))


def load(result: Made) -> Any:
    return ov.Core().compile_model(
        read(result), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    )


def layer_nodes(model: Any) -> dict[str, Any]:
    """By the names that they have in ONNX."""
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in kinds]
    return {node.get_friendly_name().removesuffix("/WithoutBiases"): node for node in nodes}


def source(node: Any, position: int) -> list[Any]:
    """The nodes from an input of a node back to a constant or to a parameter, by first inputs."""
    chain = [node.input_value(position).get_node()]
    while chain[-1].get_input_size():
        chain.append(chain[-1].input_value(0).get_node())
    return chain


def stored_type(node: Any) -> str:
    """The element type of the constant that a layer's weight is made from."""
    return str(source(node, 1)[-1].get_element_type().get_type_name())


def first_layers(kind: Kind) -> set[str]:
    """The layer that sees the pixels."""
    return set() if kind == "text" else {list_layers(export(kind))[0].name}


@every_precision
@every_tower
def test_embeddings_are_those_of_the_fp32_onnx(kind: Kind, precision: Precision) -> None:
    inputs = samples(kind, 32, seed=2)
    got = cosines(load(made(kind, precision))(inputs)[0], towers.run(export(kind), inputs))
    assert got.mean() > MEAN[precision], f"cosine: mean {got.mean():.5f}, min {got.min():.5f}"


def everything(kind: Kind) -> frozenset[str]:
    return frozenset(layer.name for layer in list_layers(export(kind)))


@every_precision
@every_tower
def test_a_tower_of_which_every_layer_is_kept_is_the_floating_point_one(kind: Kind, precision: Precision) -> None:
    kept = make(kind, precision, everything(kind))
    assert not kept.quantized
    nodes = read(kept).get_ops()
    assert not [node for node in nodes if node.get_type_name() == "FakeQuantize"]
    inputs = samples(kind, 8, seed=2)
    assert cosines(load(kept)(inputs)[0], towers.run(export(kind), inputs)).min() > 0.99999


@every_tower
def test_nothing_is_rounded_on_the_way_to_layers_that_are_kept(kind: Kind) -> None:
    """Of a tower of which one layer in the middle alone is rounded, nothing behind it."""
    names = [layer.name for layer in list_layers(export(kind)) if layer.weighted]
    middle = names[len(names) // 2]
    result = make(kind, "w8a8", everything(kind) - {middle})
    assert result.quantized == {middle}
    ordered = read(result).get_ordered_ops()
    place = next(i for i, node in enumerate(ordered) if node.get_friendly_name().startswith(middle))
    assert not [node for node in ordered[place:] if node.get_type_name() == "FakeQuantize"]


@every_precision
@every_tower
def test_embeddings_are_of_length_one(kind: Kind, precision: Precision) -> None:
    rows = load(made(kind, precision))(samples(kind, 8, seed=2))[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


@every_precision
@every_tower
def test_the_batch_may_have_any_size(kind: Kind, precision: Precision) -> None:
    inputs, model = samples(kind, 3, seed=2), load(made(kind, precision))
    one_by_one = np.concatenate([model(row[None])[0].copy() for row in inputs])
    np.testing.assert_allclose(model(inputs)[0], one_by_one, atol=2e-2)


@every_precision
def test_texts_may_be_cut_behind_their_end(precision: Precision) -> None:
    ids, model = samples("text", 1, seed=2), load(made("text", precision))
    end = int((ids[0] == towers.EOT).argmax()) + 1
    whole = model(ids)[0].copy()
    assert cosine(model(np.ascontiguousarray(ids[:, :end]))[0], whole) > 0.99


def cosine(one: Any, other: Any) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@every_tower
def test_all_weights_become_int8(kind: Kind) -> None:
    weighted = {layer.name for layer in list_layers(export(kind)) if layer.weighted}
    assert made(kind, "w8a16").quantized == weighted
    nodes = layer_nodes(read(made(kind, "w8a16")))
    assert {stored_type(nodes[name]) for name in weighted} == {"i8"}


@every_tower
def test_all_weights_become_int4_but_those_that_see_pixels(kind: Kind) -> None:
    weighted = {layer.name for layer in list_layers(export(kind)) if layer.weighted}
    assert made(kind, "w4a16").quantized == weighted
    nodes = layer_nodes(read(made(kind, "w4a16")))
    first = first_layers(kind)
    assert {name: stored_type(nodes[name]) for name in weighted} == {
        name: "i8" if name in first else "i4" for name in weighted
    }


def stems(kind: Kind) -> set[str]:
    """The layer that sees normalised pixels; patches are made from integers."""
    return first_layers(kind) if kind == "repvgg" else set()


@every_tower
def test_all_layers_compute_in_8_bits_but_stems(kind: Kind) -> None:
    names = {layer.name for layer in list_layers(export(kind)) if layer.weighted}
    assert made(kind, "w8a8").quantized >= names - stems(kind)
    assert not made(kind, "w8a8").quantized & stems(kind)


@every_tower
def test_the_cpu_computes_in_integers_all_but_stems(kind: Kind) -> None:
    """What the CPU really runs, by its own account: the type that each kernel computes in."""
    kernels = []
    for node in load(made(kind, "w8a8")).get_runtime_model().get_ordered_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        if info["layerType"] in ("Convolution", "FullyConnected"):
            kernels.append((info["originalLayersNames"], info["runtimePrecision"]))
    weighted = [layer for layer in list_layers(export(kind)) if layer.weighted]
    assert len(kernels) >= len(weighted)
    in_float = [name.split("/")[0] for name, precision in kernels if precision not in ("i8", "u8")]
    assert set(in_float) == stems(kind), kernels


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_windows_of_kernels_keep_their_sums(precision: Precision) -> None:
    exact = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model_from_string(export("repvgg")).graph.initializer
    }
    kernels = {
        n.name: exact[n.input[1]]
        for n in onnx.load_model_from_string(export("repvgg")).graph.node
        if n.op_type == "Conv"
    }
    layers = layer_nodes(read(made("repvgg", precision)))
    rounded = sorted(kernels.keys() & made("repvgg", precision).quantized)
    assert len(rounded) >= len(kernels) - 1
    for name in rounded:
        chain = source(layers[name], 1)
        scale = next(node for node in chain if node.get_type_name() == "Multiply").input_value(1).get_node().data
        kernel = kernels[name] / np.asarray(scale, np.float64)
        assert np.abs(np.asarray(chain[-1].data, np.int64).sum((2, 3)) - kernel.sum((2, 3))).max() <= 0.51, name


def test_pixels_that_are_normalised_are_not_rounded() -> None:
    [name] = stems("repvgg")
    before = [node.get_type_name() for node in source(layer_nodes(read(made("repvgg", "w8a8")))[name], 0)]
    assert before[-1] == "Parameter"
    assert "FakeQuantize" not in before


def test_kept_patches_stay_in_floating_point() -> None:
    [name] = first_layers("vit")
    result = made("vit", "w8a8", frozenset({name}))
    assert result.quantized == made("vit", "w8a8").quantized - {name}
    assert layer_nodes(read(result))[name].get_type_name() == "Convolution"


def test_what_attention_makes_is_rounded_where_it_is_made() -> None:
    nodes = read(made("vit", "w8a8")).get_ordered_ops()
    behind = [node.input_value(0).get_node() for node in nodes if node.get_type_name() == "FakeQuantize"]
    products = [node for node in behind if node.get_type_name() == "MatMul"]
    assert len(products) == sum(layer.name.endswith("attention.out") for layer in list_layers(export("vit")))


@every_precision
def test_the_token_table_is_stored_in_integers(precision: Precision) -> None:
    model = read(made("text", precision))
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    sizes = [(node, int(np.prod(node.get_output_shape(0)))) for node in constants]
    tables = {
        str(node.get_element_type().get_type_name())
        for node, size in sizes
        if size == towers.VOCABULARY * 64 and node.get_output_shape(0)[0] == towers.VOCABULARY
    }
    assert tables == {"i4" if precision == "w4a16" else "i8"}


@every_precision
def test_kept_layers_stay_in_floating_point(precision: Precision) -> None:
    kept = list_layers(export("repvgg"))[2].name
    result = made("repvgg", precision, frozenset({kept}))
    assert result.quantized == made("repvgg", precision).quantized - {kept}
    assert stored_type(layer_nodes(read(result))[kept]) in ("f16", "f32")


@pytest.mark.parametrize("kind, precision", [("text", "w8a8"), ("text", "w4a16"), ("repvgg", "w4a16")])
def test_a_second_run_gives_the_same_bytes(kind: Kind, precision: Precision) -> None:
    again, before = make(kind, precision), made(kind, precision)
    assert again.quantized == before.quantized
    assert [name for name in before.files if again.files[name] != before.files[name]] == []


@every_precision
@every_tower
def test_files_tell_nothing_of_the_machine(kind: Kind, precision: Precision) -> None:
    tower, files = tower_of(kind), made(kind, precision).files
    assert set(files) == {f"{tower}.xml", f"{tower}.bin"}
    xml = files[f"{tower}.xml"].decode()
    assert re.match(rf'<\?xml version="1.0"\?>\s*<net name="{tower}"', xml)
    assert not re.search(r"<rt_info|/tmp|edgeclip-|/home|[cC]onversion_parameters", xml)


WATCH = """
import os, sys

def watch(event, arguments):
    path = arguments[0] if arguments else ""
    wrote = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    reached = event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.posix_spawn")
    if reached or (wrote and not str(path).startswith(ALLOWED)):
        os.write(LOG, f"{event} {arguments}\\n".encode())

ALLOWED = ("/dev/", TEMPORARY)
LOG = os.open(LOG_PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(LOG, b"watching\\n")
sys.addaudithook(watch)
sys.dont_write_bytecode = True
"""


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_the_child_reaches_no_network_and_writes_nothing_elsewhere(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, temporary, hook, log = (tmp_path / name for name in ("home", "temporary", "hook", "log"))
    for folder in (home, temporary, hook):
        folder.mkdir()
    given = f"TEMPORARY = {str(temporary)!r}\nLOG_PATH = {str(log)!r}\n"
    (hook / "sitecustomize.py").write_text(given + WATCH)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name, value in {"HOME": home, "PYTHONPATH": hook, "TMPDIR": temporary}.items():
        monkeypatch.setenv(name, str(value))
    make("repvgg", precision)
    assert log.read_text() == "watching\n"
    assert [*home.iterdir(), *temporary.iterdir()] == []
