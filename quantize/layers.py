"""The layers of an exported tower that quantizing is about: convolutions and matrix products.

`edgeclip.export` names them after the modules that they come from, and every target keeps those names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclip.errors import NonFiniteError, UsageError
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
        ExportError: it is not an ONNX model.
    """
    return layers_of(graphs.parse(model).graph)


def layers_of(graph: Any) -> list[LayerInfo]:
    """As `list_layers`, of a GraphProto."""
    constant = {name for name, _ in graphs.tensors(graph)}
    for node in graph.node:  # a weight that is stored as integers
        if node.op_type in ("DequantizeLinear", "QuantizeLinear") and node.input[0] in constant:
            constant.add(node.output[0])
    return [LayerInfo(n.name, n.op_type, n.input[1] in constant) for n in graph.node if n.op_type in OPS]


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
