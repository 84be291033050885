"""A ViT's patches as a product of integers, of which one side is exact. Of the child process only.

Pixels are integers already, and a convolution whose windows neither overlap nor reach beyond the picture is a matrix
product of them. With their normalisation moved into weights and bias, nothing but the weights is rounded. In floating
point the patches of a ViT-B/32 took a tenth of the tower's time, as integers 2.5 %.

    pixels → Transpose → Convert → Multiply → Add → Convolution → Reshape → Transpose           Given
    pixels → Reshape → Transpose → Reshape → Convert → FakeQuantize → MatMul → Add              Result: [B, P, D]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import ir_graph
from edgeclip.quantize.sums import round_windows

_BEFORE = ("Add", "Multiply", "Convert", "Transpose", "Parameter")
"""From a convolution back to the pixels."""
_LEVELS, _LIMIT = 256, 127


@dataclass(frozen=True)
class _Patches:
    """The convolution, what stands for it in the end, and what it is made from."""

    layer: Any
    pixels: Any
    end: Any
    """The node that makes [B, P, D]."""
    size: int
    """Of the pictures."""
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    """Of pixels, [C]."""


def quantize_patches(model: Any, keep: Iterable[str]) -> None:
    """Round the layer that makes patches, where there is one and it is not in `keep`; the model is changed."""
    kept = set(keep)
    for node in ir_graph.layers(model):
        found = _find(node) if ir_graph.name_of(node) not in kept else None
        if found is not None:
            found.end.output(0).replace(_product(found))


def _find(node: Any) -> _Patches | None:
    """The patches that a layer makes; None where it makes none."""
    chain = ir_graph.back(node, _BEFORE)
    if chain is None or node.get_type_name() != "Convolution" or not _is_exact(node):
        return None
    add, multiply, _, transpose, pixels = chain
    reshape = ir_graph.only_user(node)
    end = ir_graph.only_user(reshape) if reshape is not None and reshape.get_type_name() == "Reshape" else None
    if ir_graph.order_of(transpose) != [0, 3, 1, 2] or ir_graph.order_of(end) != [0, 2, 1]:
        return None
    channels, window = list(node.input_value(1).get_shape())[1:3]
    side = pixels.get_output_partial_shape(0)[1].get_length()
    scale, shift = (_per_channel(each, channels) for each in (multiply, add))
    if scale is None or shift is None or side % window:
        return None
    return _Patches(node, pixels, end, side, scale, shift)


def _is_exact(node: Any) -> bool:
    """Whether windows are squares side by side."""
    options, kernel = node.get_attributes(), list(node.input_value(1).get_shape())[2:]
    plain = set(options["dilations"]) == {1} and options["auto_pad"].lower() in ("explicit", "valid")
    unpadded = not any([*options["pads_begin"], *options["pads_end"]])
    return plain and unpadded and list(options["strides"]) == kernel and len(set(kernel)) == 1


def _per_channel(node: Any, channels: int) -> NDArray[np.float32] | None:
    """The constant of a Multiply or an Add, [C]; None where it is something else."""
    values = ir_graph.values_of(node.input_value(1).get_node())
    if values is None or [1] * (4 - values.ndim) + list(values.shape) not in ([1, channels, 1, 1], [1, 1, 1, 1]):
        return None
    return np.broadcast_to(values.reshape(-1), channels)


def _product(found: _Patches) -> Any:
    """The output [B, P, D]."""
    make, weight = ov.opset13, np.asarray(found.layer.input_value(1).get_node().data, np.float64)
    outputs, channels, size, _ = weight.shape
    bias = (weight * found.shift[:, None, None]).sum((1, 2, 3)).astype(np.float32)
    scaled = weight * found.scale[:, None, None]
    steps = np.abs(scaled).max((1, 2, 3)) / _LIMIT
    steps[steps == 0] = 1
    levels = round_windows(scaled / steps[:, None, None, None]).transpose(0, 2, 3, 1).reshape(outputs, -1)
    integers = make.constant(np.ascontiguousarray(levels))
    whole = make.multiply(make.convert(integers, "f32"), make.constant(steps[:, None].astype(np.float32)))
    product = make.matmul(_unfolded(found, size, channels), whole, False, True)
    product.set_friendly_name(found.layer.get_friendly_name())
    return make.add(product, make.constant(bias[None, None])).output(0)


def _unfolded(found: _Patches, size: int, channels: int) -> Any:
    """[B, S, S, C] pixels as rows of patches, [B, P, size·size·C] float32 that hold integers."""
    make, count = ov.opset13, found.size // size

    def shaped(x: Any, *shape: int) -> Any:
        return make.reshape(x, make.constant(np.array([0, *shape], np.int64)), True)

    x = shaped(found.pixels, count, size, count, size * channels)
    x = shaped(make.transpose(x, make.constant(np.array([0, 1, 3, 2, 4]))), count * count, size * size * channels)
    ends = [make.constant(np.float32(end)) for end in (0, _LEVELS - 1)]
    return make.fake_quantize(make.convert(x, "f32"), *ends, *ends, _LEVELS)
