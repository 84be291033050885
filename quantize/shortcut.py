"""Shortcuts that were folded into convolutions, taken out again where integers could not hold both.

A reparameterized block adds its shortcut into its kernel: a weight near 1 that passes each channel on, among others a
thousand times smaller. Of a row with such a weight 8-bit integers keep the shortcut alone, and the layer does nothing
any more. Beside the convolution, as a product and a sum in floating point, the shortcut costs little, and the rest of
the kernel has all the integers.

Source: Ding et al., "RepVGG" (2021), for the folding; Chu et al., "Make RepVGG greater again" (2023), for what it does
to integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclip.quantize import graphs
from edgeclip.quantize.graphs import Array

DOMINANCE = 8.0
"""How many times larger than the rest of its row a shortcut must be, in half of the rows, to be taken out."""
SUFFIX = "/shortcut"


def separate_shortcuts(model: bytes) -> bytes:
    """An ONNX model that computes the same up to rounding, its dominant shortcuts beside their convolutions.

    Layers keep their names. A model without such shortcuts is returned as it is.

    Raises:
        ExportError: not an ONNX model.
        TargetUnavailableError: `onnx` is missing.
    """
    parsed = graphs.parse(model)
    tensors = {tensor.name: tensor for tensor in parsed.graph.initializer}
    nodes: list[Any] = []
    for node in parsed.graph.node:
        nodes += _separated(node, tensors, parsed.graph) or [node]
    if len(nodes) == len(parsed.graph.node):
        return model
    graphs.replace(parsed.graph.node, nodes)
    return graphs.serialize(parsed)


def _separated(node: Any, tensors: dict[str, Any], graph: Any) -> list[Any]:
    """The nodes that take the place of a convolution; none where it stays as it is."""
    import onnx

    if node.op_type != "Conv" or node.input[1] not in tensors:
        return []
    tensor = tensors[node.input[1]]
    weight = graphs.to_array(tensor)
    if not (_keeps_shape(node, weight) and _dominates(weight)):
        return []
    rest = weight.copy()
    _diagonal(rest)[:] = 0
    passed = np.ascontiguousarray(_diagonal(weight)).reshape(-1, 1, 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(rest, tensor.name))
    base = node.name + SUFFIX
    graph.initializer.append(onnx.numpy_helper.from_array(passed, f"{base}.weight"))
    output = node.output[0]
    node.output[0] = f"{base}.rest"
    return [
        node,
        onnx.helper.make_node("Mul", [node.input[0], f"{base}.weight"], [f"{base}.passed"], name=base),
        onnx.helper.make_node("Add", [f"{base}.rest", f"{base}.passed"], [output], name=f"{base}/sum"),
    ]


def _keeps_shape(node: Any, weight: Array) -> bool:
    """Whether output pixels lie where input pixels do, channel for channel."""
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    sides = weight.shape[2:]
    spatial = len(sides)
    return (
        weight.ndim >= 3
        and weight.shape[0] == weight.shape[1]
        and all(side % 2 for side in sides)
        and given.get("group", 1) == 1
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and set(given.get("strides", [1])) == {1}
        and set(given.get("dilations", [1])) == {1}
        and list(given.get("pads", [0] * 2 * spatial)) == [side // 2 for side in sides] * 2
    )


def _dominates(weight: Array) -> bool:
    rest = np.abs(weight)
    passed = _diagonal(rest).copy()
    _diagonal(rest)[:] = 0
    return bool(np.median(passed) > DOMINANCE * np.median(rest.reshape(len(rest), -1).max(axis=1)))


def _diagonal(weight: Array) -> Array:
    """What each channel of [C, C, …] gives to itself at the centre of the kernel; a view, [C]."""
    centre = tuple(side // 2 for side in weight.shape[2:])
    view: Array = np.einsum("cc->c", weight[(slice(None), slice(None), *centre)])
    return view
