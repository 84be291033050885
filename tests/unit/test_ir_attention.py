"""Attention rewritten for OpenVINO: the same numbers, in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import ir_graph
from edgeclip.quantize.ir_attention import round_sooner, turn_keys
from tests.towers import Kind, export, samples

TOKENS, HEADS, WIDTH = 6, 2, 8


def run(model: Any, inputs: NDArray[Any]) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(inputs)[0])


def read(kind: Kind) -> Any:
    model = ov.Core().read_model(export(kind))
    ir_graph.fold(model)
    return model


def orders(model: Any) -> list[list[int] | None]:
    return [ir_graph.order_of(node) for node in model.get_ordered_ops() if node.get_type_name() == "Transpose"]


@pytest.mark.parametrize("kind", ["vit", "text"])
def test_products_turn_the_keys_themselves(kind: Kind) -> None:
    model, inputs = read(kind), samples(kind, 4)
    expected, names = run(model, inputs), [ir_graph.name_of(node) for node in ir_graph.layers(model)]
    assert [0, 2, 3, 1] in orders(model)
    turn_keys(model)
    assert [0, 2, 3, 1] not in orders(model)
    assert [ir_graph.name_of(node) for node in ir_graph.layers(model)] == names
    np.testing.assert_allclose(run(model, inputs), expected, atol=1e-5)


def attention(*, shared: bool = False, low: float | None = None) -> Any:
    """Values of integer weights, averaged over tokens, smoothed and rounded, as NNCF leaves them.

    Args:
        shared: something else reads the values, too.
        low: where the range of the first channel begins; None: where all do.
    """
    make, rng = ov.opset13, np.random.default_rng(0)
    x = make.parameter([-1, TOKENS, WIDTH], np.float32, name="x")
    levels = make.convert(make.constant(rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)), "f32")
    weight = make.multiply(levels, make.constant(rng.uniform(0.001, 0.01, (WIDTH, 1)).astype(np.float32)))
    values = make.add(make.matmul(x, weight, False, True), make.constant(rng.normal(size=WIDTH).astype(np.float32)))
    heads = make.constant(np.array([0, 0, HEADS, WIDTH // HEADS]))
    turned = make.transpose(make.reshape(values, heads, True), make.constant(np.array([0, 2, 1, 3])))
    weights = make.softmax(make.constant(rng.normal(size=(1, HEADS, TOKENS, TOKENS)).astype(np.float32)), 3)
    found = make.transpose(make.matmul(weights, turned, False, False), make.constant(np.array([0, 2, 1, 3])))
    found = make.reshape(found, make.constant(np.array([0, 0, WIDTH])), True)
    factors = make.constant(rng.uniform(0.5, 2, (1, 1, WIDTH)).astype(np.float32))
    begins = np.full(1 if low is None else (1, 1, WIDTH), -4, np.float32)
    begins.flat[0] = -4 if low is None else low
    ends = [make.constant(begins), make.constant(-begins)]
    rounded = make.fake_quantize(make.multiply(found, factors), *ends, *ends, 256)
    return ov.Model([make.add(rounded, values) if shared else rounded], [x], "image")


def rounded_nodes(model: Any) -> list[str]:
    """What is rounded, by kind."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    return [node.input_value(0).get_node().get_type_name() for node in nodes]


def test_rounding_comes_right_behind_the_product() -> None:
    model, inputs = attention(), np.random.default_rng(1).normal(size=(3, TOKENS, WIDTH)).astype(np.float32)
    expected = run(model, inputs)
    round_sooner(model)
    assert rounded_nodes(model) == ["MatMul"]
    step = 8 / 255
    difference = np.abs(run(model, inputs) - expected)
    assert difference.max() < 1.01 * step  # a sum in another order may fall on the other side
    assert (difference > step / 2).mean() < 0.01


@pytest.mark.parametrize("model", [attention(shared=True), attention(low=-3)], ids=["other readers", "ranges differ"])
def test_what_cannot_be_moved_is_left_alone(model: Any) -> None:
    inputs = np.random.default_rng(1).normal(size=(3, TOKENS, WIDTH)).astype(np.float32)
    expected = run(model, inputs)
    round_sooner(model)
    assert rounded_nodes(model) == ["Multiply"]
    np.testing.assert_array_equal(run(model, inputs), expected)
