"""The file of learned scales."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from edgeclip.errors import CheckpointError
from edgeclip.quantize.scales import Learned, Scales

ONES = np.ones((4, 2), np.float32)


def learned() -> Learned:
    layers = {"image.stem.conv": Scales(0.1 * ONES, 0.02, 7), "text.projection": Scales(ONES)}
    return Learned("w8a8", False, layers)


def test_what_was_written_is_read() -> None:
    read = Learned.from_bytes(learned().to_bytes())
    assert (read.precision, read.symmetric, list(read.layers)) == ("w8a8", False, list(learned().layers))
    one, other = read.layers.values()
    assert one.activation_scale == pytest.approx(0.02) and one.zero_point == 7 and one.bits == 8
    assert np.array_equal(one.weight_scale, 0.1 * ONES) and other.activation_scale is None is other.zero_point


def test_four_bits_are_told_by_the_precision() -> None:
    read = Learned.from_bytes(Learned("w4a16", True, {"text.x": Scales(ONES, bits=4)}).to_bytes())
    assert read.symmetric and read.layers["text.x"].bits == 4


def test_a_tower_s_layers_have_the_names_of_its_graph() -> None:
    assert list(learned().tower("image")) == ["stem.conv"] and list(learned().tower("text")) == ["projection"]


def test_the_same_scales_give_the_same_bytes() -> None:
    assert learned().to_bytes() == learned().to_bytes()


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_torn_file_is_refused(cut: int) -> None:
    with pytest.raises(CheckpointError, match=r"scales\.safetensors: not a file of scales"):
        Learned.from_bytes(learned().to_bytes()[:cut])


@pytest.mark.parametrize(
    "metadata", [None, {"other": "{}"}, {"about": '{"precision": "w8a8"}'}, {"about": "no"}, {"about": "3"}]
)
def test_a_file_that_says_too_little_is_refused(metadata: dict[str, str] | None) -> None:
    with pytest.raises(CheckpointError, match="not a file of scales"):
        Learned.from_bytes(save({"x.weight_scale": ONES}, metadata=metadata))


def test_an_unknown_precision_is_refused() -> None:
    data = save({"x.weight_scale": ONES}, metadata={"about": '{"precision": "w2a2", "symmetric": true}'})
    with pytest.raises(CheckpointError, match="unknown precision 'w2a2'"):
        Learned.from_bytes(data)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(value: float) -> None:
    data = Learned("w4a16", False, {"text.x": Scales(value * ONES, bits=4)}).to_bytes()
    with pytest.raises(CheckpointError, match="text.x.weight_scale is not above 0 everywhere"):
        Learned.from_bytes(data)
