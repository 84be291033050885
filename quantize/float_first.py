"""Pixels made float before anything else happens to them: all that TensorRT can do with uint8 is to convert it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgeclip.quantize import graphs


def float_first(graph: Any) -> None:
    """Swap the transposition of the pixels with the cast behind it; what else reads the pixels reads the cast's result.

    A GraphProto without such a pair, as a text tower's, stays as it is. Values do not change.
    """
    pixels = graph.input[0].name
    nodes = list(graph.node)
    transpose, cast = _pair(nodes, pixels)
    if transpose is None:
        return
    middle, end = transpose.output[0], cast.output[0]
    for node in nodes:
        node.input[:] = [middle if name == pixels else name for name in node.input]
    cast.input[:], cast.output[:], transpose.output[:] = [pixels], [middle], [end]
    graphs.replace(graph.node, [cast, *(node for node in nodes if node is not cast)])


def _pair(nodes: list[Any], pixels: str) -> tuple[Any, Any]:
    """A Transpose of the pixels, and the Cast that alone reads it; None and None where there is none."""
    made_by = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    for cast in nodes:
        if cast.op_type == "Cast" and readers[cast.input[0]] == 1:
            source = made_by.get(cast.input[0])
            if source is not None and source.op_type == "Transpose" and source.input[0] == pixels:
                return source, cast
    return None, None
