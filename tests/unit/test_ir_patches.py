"""Patches of a ViT as a product of integers: the same numbers as the convolution's, but for the rounding of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov
from edgeclip.quantize.ir_patches import quantize_patches

SIDE, WINDOW, WIDTH = 24, 8, 5
MEAN, STD = np.array([0.48, 0.46, 0.41]), np.array([0.27, 0.26, 0.28])


def stem(
    weight: NDArray[Any], *, strides: int = WINDOW, pads: int = 0, side: int = SIDE, std: NDArray[Any] = STD
) -> Any:
    """A model from uint8 [B, S, S, 3] pixels to [B, P, D], as exported."""
    make = ov.opset13
    pixels = make.parameter([-1, side, side, 3], np.uint8, name="pixels")
    x = make.convert(make.transpose(pixels, make.constant(np.array([0, 3, 1, 2]))), "f32")
    x = make.multiply(x, make.constant((1 / (255 * std)).astype(np.float32).reshape(1, 3, 1, 1)))
    x = make.add(x, make.constant((-MEAN / std).astype(np.float32).reshape(1, 3, 1, 1)))
    x = make.convolution(x, make.constant(weight.astype(np.float32)), [strides] * 2, [pads] * 2, [pads] * 2, [1, 1])
    x.set_friendly_name("patches")
    x = make.reshape(x, make.constant(np.array([0, weight.shape[0], -1])), True)
    return ov.Model([make.transpose(x, make.constant(np.array([0, 2, 1])))], [pixels], "image")


def run(model: Any, side: int = SIDE) -> NDArray[np.float32]:
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(pixels)[0])


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def random_weight(seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(WIDTH, 3, WINDOW, WINDOW))


def test_weights_that_are_integers_give_what_the_convolution_gives() -> None:
    """Multiples of one step, after the normalisation is in them: rounding finds nothing to do."""
    levels = np.random.default_rng(0).integers(-126, 127, (WIDTH, 3, WINDOW, WINDOW)).astype(np.float64)
    levels[:, 0, 0, 0] = 127
    weight = levels * 0.01 * STD[:, None, None]
    model = stem(weight)
    expected = run(model)
    quantize_patches(model, [])
    assert "Convolution" not in kinds(model)
    np.testing.assert_allclose(run(model), expected, rtol=1e-4, atol=1e-4)


def test_any_weights_give_nearly_what_the_convolution_gives() -> None:
    model = stem(random_weight())
    expected = run(model)
    quantize_patches(model, [])
    assert np.abs(run(model) - expected).max() < 0.02 * np.abs(expected).max()


def test_the_layer_keeps_its_name() -> None:
    model = stem(random_weight())
    quantize_patches(model, [])
    assert [n.get_type_name() for n in model.get_ordered_ops() if n.get_friendly_name() == "patches"] == ["MatMul"]


def test_a_layer_of_zeros_stays_one() -> None:
    model = stem(np.zeros((WIDTH, 3, WINDOW, WINDOW)))
    quantize_patches(model, [])
    assert not run(model).any()


@pytest.mark.parametrize(
    "model",
    [
        stem(random_weight(), strides=4),
        stem(random_weight(), pads=4),
        stem(random_weight(), side=27),
    ],
    ids=["overlap", "padding", "remainder"],
)
def test_what_is_no_exact_tiling_is_left_alone(model: Any) -> None:
    before = kinds(model)
    quantize_patches(model, [])
    assert kinds(model) == before


def test_a_kept_layer_is_left_alone() -> None:
    model = stem(random_weight())
    before = kinds(model)
    quantize_patches(model, ["patches"])
    assert kinds(model) == before
