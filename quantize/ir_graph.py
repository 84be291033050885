"""Layers in an OpenVINO model: which there are, and which of them became integers. Of the child process only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
SMALL = 1 << 14
"""Values of a constant below which its size does not matter."""
_DECOMPRESSES = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize")
"""What may stand between a layer and the constant that its weights are stored in."""


def name_of(node: Any) -> str:
    """The name that the layer has in ONNX, and so over all targets."""
    return str(node.get_friendly_name()).removesuffix(_FRONT_END)


def layers(model: Any) -> list[Any]:
    """The nodes that are layers, in graph order."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() in LAYERS]


def names(model: Any) -> set[str]:
    """Those of the layers."""
    return {name_of(node) for node in layers(model)}


def sees_input(model: Any) -> set[str]:
    """Names of the nodes of layers that no other layer feeds, as the stem of an image tower."""
    fed = _downstream(model)
    return {
        node.get_friendly_name()
        for node in layers(model)
        if not any(value.get_node().get_friendly_name() in fed for value in node.input_values())
    }


def fold(model: Any) -> None:
    """Compute what is constant, such as the shapes of biases, which hide that a bias is one."""
    passes = import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def scope_names(model: Any, keep: Iterable[str], *, first: bool) -> list[str]:
    """The nodes that must not be quantized: layers in `keep`, what no layer is before, and what no quantized one reads.

    Pixels are normalised there, and embeddings: both are cheap, and a vector that is divided by the square root of
    rounded squares is no longer of length 1.

    Args:
        first: quantize layers that see the input itself, as the stem of an image tower.
    """
    kept = set(keep)
    unfed = set[str]() if first else sees_input(model)
    left_out = {node.get_friendly_name() for node in layers(model) if name_of(node) in kept} | unfed
    before, after = _downstream(model), _feeding(model, left_out)
    for node in model.get_ordered_ops():
        is_operator = node.get_type_name() not in ("Constant", "Parameter", "Result")
        name = node.get_friendly_name()
        if is_operator and not (name in before and name in after):
            left_out.add(name)
    return sorted(left_out)


def _downstream(model: Any) -> set[str]:
    """Names of layers and of what depends on one."""
    found: set[str] = set()
    for node in model.get_ordered_ops():
        sources = (value.get_node().get_friendly_name() for value in node.input_values())
        if node.get_type_name() in LAYERS or any(source in found for source in sources):
            found.add(node.get_friendly_name())
    return found


def _feeding(model: Any, left_out: set[str]) -> set[str]:
    """Names of the layers that are not left out, and of what they read without another layer in between."""
    found: set[str] = set()
    for node in reversed(model.get_ordered_ops()):
        name = node.get_friendly_name()
        users = (user.get_node().get_friendly_name() for out in node.outputs() for user in out.get_target_inputs())
        is_layer = node.get_type_name() in LAYERS
        if name not in left_out if is_layer else any(user in found for user in users):
            found.add(name)
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
        replace(node, ov.opset13.matmul(node.input_value(0), turned, options["transpose_a"], True))


def replace(node: Any, other: Any) -> None:
    """Put another node into a node's place, under its name."""
    other.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(other.output(0))


def rename(model: Any) -> None:
    """Number the nodes that nobody named by their place: OpenVINO names them by a counter that differs between runs."""
    for place, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if kind not in LAYERS and re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{place}")


def halve(model: Any) -> None:
    """Store large floating-point constants in fp16; saving does that of itself, but not beside integers.

    Those of a quantizer are small, and stay exact.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        values = np.asarray(node.data)
        if values.size < SMALL or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = ov.opset13.constant(values.astype(np.float16))
        half.set_friendly_name(node.get_friendly_name())
        wide = ov.opset13.convert(half, "f32").output(0)
        for user in list(node.output(0).get_target_inputs()):
            user.replace_source_output(wide)


def back(node: Any, kinds: Sequence[str], *, first: int = 0) -> list[Any] | None:
    """The nodes of these kinds that a node is made from, from itself on back by first inputs; None where they differ.

    Args:
        first: the node's input to begin with.
    """
    found: list[Any] = []
    source = node.input_value(first).get_node()
    for kind in kinds:
        if source.get_type_name() != kind:
            return None
        found.append(source)
        source = source.input_value(0).get_node() if source.get_input_size() else None
    return found


def only_user(node: Any) -> Any:
    """The node that reads what a node makes; None where there are several."""
    users = node.output(0).get_target_inputs()
    return next(iter(users)).get_node() if len(users) == 1 else None


def order_of(node: Any) -> list[int] | None:
    """In which order a Transpose takes its axes; None where it is none."""
    if node is None or node.get_type_name() != "Transpose":
        return None
    order = values_of(node.input_value(1).get_node())
    return None if order is None else [int(axis) for axis in order]


def values_of(node: Any) -> NDArray[Any] | None:
    """The values of a constant; None where it is none."""
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def behind(node: Any, kind: str) -> Any:
    """The first node of a kind from this one back, where nothing but a change of type is in between; or None."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == kind else None
