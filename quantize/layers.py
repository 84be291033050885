"""The layers of an exported tower that quantizing is about: convolutions and matrix products.

`edgeclip.export` names them after the modules that they come from, and every target keeps those names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclip.errors import ExportError, NonFiniteError, UsageError
from edgeclip.quantize import graphs

OPS = ("Conv", "Gemm", "MatMul")
_NAMED = 3
"""Names that a message repeats at most."""


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a graph."""

    name: str
    op: str
    """`Conv`, `Gemm` or `MatMul`."""
    weighted: bool
    """Its second input is a constant; otherwise it multiplies two activations, as attention does."""


def list_layers(model: bytes) -> list[LayerInfo]:
    """The layers of an ONNX model, floating-point or quantized, in graph order.

    Raises:
        TargetUnavailableError: `onnx` is missing.
        ExportError: it is not an ONNX model, or its layers are not named.
    """
    return layers_of(graphs.parse(model).graph)


def layers_of(graph: Any) -> list[LayerInfo]:
    """As `list_layers`, of a GraphProto."""
    constant = _derived(graph, {name for name, _ in graphs.tensors(graph)})
    found = [LayerInfo(n.name, n.op_type, n.input[1] in constant) for n in graph.node if n.op_type in OPS]
    counts = Counter(layer.name for layer in found)
    repeated = [name for name, count in counts.items() if count > 1 or not name]
    if repeated:
        raise ExportError(f"layers cannot be told apart: more than one, or one without a name: {shown(repeated)!r}")
    return found


def stored_as_integers(graph: Any) -> frozenset[str]:
    """Names of the layers whose weights are int8 in the file."""
    import onnx

    codes = {name for name, tensor in graphs.tensors(graph) if tensor.data_type == onnx.TensorProto.INT8}
    constant = {name for name, _ in graphs.tensors(graph)}
    made_from_codes = _derived(graph, codes, constant) - codes
    return frozenset(n.name for n in graph.node if n.op_type in OPS and n.input[1] in made_from_codes)


def computed_in_integers(graph: Any) -> frozenset[str]:
    """Names of the layers whose two inputs are both dequantized, so that an engine can compute them in integers."""
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return frozenset(n.name for n in graph.node if n.op_type in OPS and dequantized.issuperset(n.input[:2]))


def output_axis(node: Any, rank: int) -> int:
    """The axis of a layer's weight that its output channels lie on."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return rank - (2 if transposed else 1)


def _derived(graph: Any, seeds: set[str], others: Iterable[str] = ()) -> set[str]:
    """The seeds, and every value that is computed from at least one of them and, beside them, from `others` alone."""
    found, known = set(seeds), {"", *seeds, *others}
    for node in graph.node:
        if node.input and known.issuperset(node.input) and found.intersection(node.input):
            found.update(node.output)
            known.update(node.output)
    return found


def check_kept(keep: Iterable[str], layers: Iterable[LayerInfo]) -> None:
    """
    Raises:
        UsageError: a layer that shall stay in floating point does not exist.
    """
    known = [layer.name for layer in layers]
    unknown = sorted(set(keep) - set(known))
    if unknown:
        raise UsageError(f"no layer is named {shown(unknown)}", hint=f"the layers are: {shown(known)}")


def check_finite(model: bytes) -> None:
    """Refuse weights that no scale fits.

    Raises:
        NonFiniteError: naming the tensors with NaN or infinity, the first few of them.
        TargetUnavailableError, ExportError: as `list_layers`.
    """
    check_finite_in(graphs.parse(model).graph)


def check_finite_in(graph: Any) -> None:
    """As `check_finite`, of a GraphProto."""
    bad = [name for name, tensor in graphs.tensors(graph) if not _finite(tensor)]
    if bad:
        raise NonFiniteError(f"NaN or infinity in {shown(bad)}", hint="the weights are damaged: nothing was quantized")


def _finite(tensor: Any) -> bool:
    array = graphs.to_array(tensor)
    if array.dtype.kind == "V":  # bfloat16 and its kin
        array = array.astype(np.float32)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
