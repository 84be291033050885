"""Layers in an OpenVINO model: which there are, and which of them became integers. Of the child process only."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_FRONT_END = "/WithoutBiases"
"""What OpenVINO's ONNX front end appends to the name of a layer whose bias it splits off."""
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Broadcast")
"""Operators that leave values as they are, and so keep them on their integer grid."""
_DECOMPRESSES = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize")
"""What may stand between a layer and the constant that its weights are stored in."""


def name_of(node: Any) -> str:
    """The name that the layer has in ONNX, and so over all targets."""
    return str(node.get_friendly_name()).removesuffix(_FRONT_END)


def layers(model: Any) -> list[Any]:
    """The nodes that are layers, in graph order."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() in LAYERS]


def fold(model: Any) -> None:
    """Compute what is constant, such as the shapes of biases, which hide that a bias is one."""
    passes = import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def scope_names(model: Any, keep: Iterable[str], *, first: bool) -> list[str]:
    """The nodes that must not be quantized: layers in `keep`, and what lies before the first and after the last layer.

    There pixels are normalised, and embeddings: both are cheap, and a vector that is divided by the square root of
    rounded squares is no longer of length 1.

    Args:
        first: quantize layers that see the input itself, as the stem of an image tower.
    """
    kept = set(keep)
    before, after = _downstream(model), _upstream(model)
    names = []
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind in ("Constant", "Parameter", "Result"):
            continue
        if kind in LAYERS:
            fed = any(value.get_node().get_friendly_name() in before for value in node.input_values())
            left_out = name_of(node) in kept or not (fed or first)
        else:
            left_out = name not in before or name not in after
        if left_out:
            names.append(name)
    return names


def _downstream(model: Any) -> set[str]:
    """Names of layers and of what depends on one."""
    found: set[str] = set()
    for node in model.get_ordered_ops():
        sources = (value.get_node().get_friendly_name() for value in node.input_values())
        if node.get_type_name() in LAYERS or any(source in found for source in sources):
            found.add(node.get_friendly_name())
    return found


def _upstream(model: Any) -> set[str]:
    """Names of layers and of what a layer depends on."""
    found: set[str] = set()
    for node in reversed(model.get_ordered_ops()):
        users = (user.get_node().get_friendly_name() for out in node.outputs() for user in out.get_target_inputs())
        if node.get_type_name() in LAYERS or any(user in found for user in users):
            found.add(node.get_friendly_name())
    return found


def integer_layers(model: Any, *, activations: bool) -> list[str]:
    """Names of the layers whose weights are stored as integers, sorted.

    Args:
        activations: only those whose activations are rounded as well, products of two activations among them.
    """
    return sorted(name_of(node) for node in layers(model) if _is_integer(node, activations))


def _is_integer(node: Any, activations: bool) -> bool:
    data, weight = (node.input_value(i).get_node() for i in (0, 1))
    stored = _constant_behind(weight)
    if stored is not None:
        return bool(stored.get_element_type().is_integral()) and (not activations or _is_rounded(data))
    return activations and _is_rounded(data) and _is_rounded(weight)


def _constant_behind(node: Any) -> Any:
    """The constant that a weight is made from; None where it is an activation."""
    while node.get_type_name() in _DECOMPRESSES:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _is_rounded(node: Any) -> bool:
    while node.get_type_name() in _MOVES:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def turn_weights(model: Any) -> None:
    """Store matrices as [out, in]: where they lie the other way round, NNCF 3.4 cannot correct their rounding."""
    for node in layers(model):
        weight = node.input_value(1).get_node()
        if node.get_type_name() != "MatMul" or weight.get_type_name() != "Constant":
            continue
        options = node.get_attributes()
        if options["transpose_b"] or len(weight.get_output_shape(0)) != 2:
            continue
        turned = ov.opset13.constant(np.ascontiguousarray(weight.data.T))
        turned.set_friendly_name(weight.get_friendly_name())
        _replace(node, ov.opset13.matmul(node.input_value(0), turned, options["transpose_a"], True))


def _replace(node: Any, other: Any) -> None:
    other.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(other.output(0))


def compress_convolutions(model: Any, keep: Iterable[str], group: int) -> None:
    """Store the weights of convolutions in 4 bits, which NNCF does for matrices alone.

    Given: float32 [O, I, H, W]. Result: int4 [O, G, g] → ×scale [O, G, 1] → reshaped to [O, I, H, W].

    Args:
        group: weights that share a scale, at most; the largest divisor of I·H·W up to it is taken.
    """
    kept = set(keep)
    for node in layers(model):
        weight = node.input_value(1).get_node()
        if node.get_type_name() == "MatMul" or weight.get_type_name() != "Constant" or name_of(node) in kept:
            continue
        node.input(1).replace_source_output(_decompressed(weight, group).output(0))


def _decompressed(weight: Any, group: int) -> Any:
    shape = list(weight.get_output_shape(0))
    rows = np.asarray(weight.data, np.float32).reshape(shape[0], -1)
    size = next(g for g in range(min(group, rows.shape[1]), 0, -1) if rows.shape[1] % g == 0)
    levels, scale = to_int4(rows.reshape(shape[0], -1, size))
    make = ov.opset13
    tensor = ov.Tensor(_packed(levels), ov.Shape(levels.shape), ov.Type.i4)
    stored = make.constant(tensor, shared_memory=False)
    stored.set_friendly_name(weight.get_friendly_name())
    scaled = make.multiply(make.convert(stored, "f16"), make.constant(scale))
    return make.convert(make.reshape(scaled, make.constant(np.array(shape, np.int64)), False), "f32")


def to_int4(groups: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Levels in [-8, 7] and scales of float32 [O, G, g], the scale of each group being the best of a few.

    The largest weight lies at -8 or beyond it: to clip it a little may cost less than what the others gain.

    Returns:
        Levels int8 [O, G, g], scales float16 [O, G, 1], negative where the largest weight is positive.
    """
    at = np.abs(groups).argmax(-1, keepdims=True)
    widest = np.take_along_axis(groups, at, -1) / -8
    best = np.full(widest.shape, np.inf, np.float32)
    levels = np.zeros(groups.shape, np.int8)
    scales = np.ones(widest.shape, np.float16)
    for share in np.linspace(1, 0.75, 11, dtype=np.float32):
        scale = (widest * share).astype(np.float16)
        scale[scale == 0] = 1
        rounded = np.clip(np.rint(groups / scale.astype(np.float32)), -8, 7)
        error = np.square(rounded * scale.astype(np.float32) - groups).sum(-1, keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        levels = np.where(better, rounded, levels).astype(np.int8)
        scales = np.where(better, scale, scales)
    return levels, scales


def _packed(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two levels a byte, the first one in its lower half."""
    flat = levels.reshape(-1).astype(np.uint8) & 15
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)
