"""What TensorRT refuses, or silently computes otherwise, told from an ONNX file without TensorRT.

Its networks are strongly typed: the file says what is an integer and what is half precision, and what the file says
must be what the kernels can do. Every rule is something that its parser or builder was seen to refuse, or to saturate,
to compute wrongly, or to overflow in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgeclip.errors import ExportError
from edgeclip.quantize import graphs, layers
from edgeclip.quantize.graphs import Array

OPSETS = range(17, 21)
"""Read by every TensorRT from 10.3 on."""
DYNAMIC_AXES = frozenset({"batch", "context"})
CONTRIB = frozenset({"Gelu"})
"""Operators of `com.microsoft` that the parser knows."""
_STANDARD = ("", "ai.onnx")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_REFUSED = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "StringNormalizer", "Unique"})
_OVERFLOWING = frozenset(
    {"LayerNormalization", "Softmax", "LogSoftmax", "LpNormalization", "ReduceSum", "ReduceSumSquare", "ReduceL2"}
)
"""Operators that square or sum up, or take exponentials."""
_QUANTIZE = "quantize with `symmetric=True`"


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT would refuse."""

    node: str
    """Name of the node, or what it makes where it has none; of the graph's input for an axis; empty for what concerns
    the whole file."""
    rule: str
    """One of: `opset`, `dynamic-axis`, `types`, `operator`, `attention`, `antialias`, `scale`, `zero-point`,
    `integer-bias`, `weight-axis`, `integer-input`, `mixed-types`, `type`, `not-finite`, `half-precision`, `rows`."""
    advice: str
    """What is wrong, and what to do."""


def lint(model: bytes) -> list[Finding]:
    """Everything in an ONNX model that TensorRT would refuse, in graph order; empty for a file that is fine.

    Raises:
        ExportError: not an ONNX model.
        TargetUnavailableError: `onnx` is missing.
    """
    context = _Context(graphs.parse(model))
    found = [*_opsets(context), *_axes(context), *_inference(context)]
    for node in context.graph.node:
        broken = [*_operators(context, node)] or [pair for rule in _RULES for pair in rule(context, node)]
        found += [Finding(node.name or node.output[0], name, advice) for name, advice in broken]
    return found


def check(model: bytes, what: str) -> None:
    """Refuse a model that TensorRT would refuse.

    Args:
        what: the model's name in the message.

    Raises:
        ExportError: for each rule that is broken, at which node first, what to do, and at how many nodes more.
        TargetUnavailableError: `onnx` is missing.
    """
    by_rule: dict[str, list[Finding]] = {}
    for finding in lint(model):
        by_rule.setdefault(finding.rule, []).append(finding)
    if by_rule:
        raise ExportError(f"{what}: TensorRT would refuse it: {'; '.join(map(_summary, by_rule.values()))}")


def _summary(found: list[Finding]) -> str:
    first, more = found[0], len(found) - 1
    place = f"node {first.node}: " if first.node else ""
    return f"{place}{first.advice}{f' (and {more} nodes more)' if more else ''}"


class _Context:
    """A model, and what rules look up in it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph = model.graph
        self.types: dict[str, int] = {}
        """Element types by name."""
        self._tensors = dict(graphs.tensors(model.graph))

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """The node behind each value."""
        return {name: node for node in self.graph.node for name in node.output}

    def constant(self, name: str) -> Array | None:
        """The value of a constant; None for what is computed."""
        return graphs.to_array(self._tensors[name]) if name in self._tensors else None

    def schema(self, node: Any) -> Any:
        """The definition of a node's operator; None for one that there is not."""
        import onnx

        versions = {o.domain: o.version for o in self.model.opset_import}
        version = versions.get("" if node.domain in _STANDARD else node.domain, versions.get("ai.onnx", 1))
        try:
            return onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return None

    def type_name(self, name: str) -> str:
        """As `uint8`; empty where it is unknown."""
        import onnx

        return str(onnx.TensorProto.DataType.Name(self.types.get(name, 0)).lower().replace("undefined", ""))


Broken = Iterator[tuple[str, str]]
"""Name of the rule, and advice."""


def _opsets(context: _Context) -> Iterator[Finding]:
    for opset in context.model.opset_import:
        if opset.domain in _STANDARD and opset.version not in OPSETS:
            advice = f"opset {opset.version}: export at {OPSETS.start} to {OPSETS.stop - 1}"
            yield Finding("", "opset", advice)


def _axes(context: _Context) -> Iterator[Finding]:
    for value in (*context.graph.input, *context.graph.output):
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value and dim.dim_param not in DYNAMIC_AXES:
                shown = f"axis {i} ({dim.dim_param or 'without a name'}) is dynamic"
                yield Finding(value.name, "dynamic-axis", f"{shown}: only batch and context may be")


def _inference(context: _Context) -> Iterator[Finding]:
    """Types that cannot be told; the rules that need them find nothing then."""
    try:
        context.types = graphs.element_types(context.model)
    except ExportError as exc:
        yield Finding("", "types", exc.message)


def _operators(context: _Context, node: Any) -> Broken:
    op = node.op_type
    if node.domain not in _STANDARD:
        if node.domain != "com.microsoft" or op not in CONTRIB:
            yield "operator", f"{node.domain}.{op} is unknown: use standard operators"
    elif op in _REFUSED or op.startswith(("QLinear", "Sequence")):
        yield "operator", f"{op} is not supported: quantize with QuantizeLinear and DequantizeLinear alone"
    elif op == "GatherND":
        yield "rows", "GatherND gave wrong rows for more than one text: pick rows by a product with zeros and ones"
    elif op == "Attention":
        yield "attention", "the fused Attention of opset 23 does not build: export at 17 to 20"
    elif op == "Resize" and any(a.name == "antialias" and a.i for a in node.attribute):
        yield "antialias", "Resize with antialiasing is not supported: resize before the model"


def _scales(context: _Context, node: Any) -> Broken:
    if node.op_type not in _CONVERSIONS:
        return
    scale = context.constant(node.input[1])
    if scale is None:
        yield "scale", f"scale {node.input[1]} is computed: it must be a constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "scale", f"scale {node.input[1]} is not positive and finite: calibrate on other samples"


def _zero_points(context: _Context, node: Any) -> Broken:
    if node.op_type not in _CONVERSIONS:
        return
    if node.op_type == "DequantizeLinear" and context.type_name(node.input[0]) == "int32":
        yield "integer-bias", f"{node.input[0]} is int32: leave biases in float; {_QUANTIZE}"
        return
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        if node.op_type == "QuantizeLinear":
            yield "zero-point", f"without a zero point it makes uint8, which saturates at 127; {_QUANTIZE}"
        elif context.type_name(node.input[0]) == "uint8":
            yield "zero-point", f"uint8 saturates at 127; {_QUANTIZE}"
        return
    value = context.constant(name)
    if value is None or value.any():
        yield "zero-point", f"zero point {name} is not 0; {_QUANTIZE}"
    elif value.dtype == np.uint8:
        yield "zero-point", f"zero point {name} is uint8, which saturates at 127; {_QUANTIZE}"


def _weight_axes(context: _Context, node: Any) -> Broken:
    """A scale for each channel must be one for each output channel."""
    source = context.made_by.get(node.input[1]) if node.op_type in layers.OPS else None
    if source is None or source.op_type != "DequantizeLinear":
        return
    codes, scale = context.constant(source.input[0]), context.constant(source.input[1])
    if codes is None or scale is None or scale.size == 1:
        return
    axis = next((a.i for a in source.attribute if a.name == "axis"), 1) % codes.ndim
    wanted = layers.output_axis(node, codes.ndim)
    if axis != wanted:
        yield "weight-axis", f"scales of {source.input[0]} lie on axis {axis}, output channels on {wanted}"


def _integer_inputs(context: _Context, node: Any) -> Broken:
    """8-bit integers are quantized values to TensorRT, and nothing but a conversion may take them."""
    for name in node.input:
        kind = context.type_name(name)
        if kind == "uint8" and node.op_type not in ("Cast", "Shape", *_CONVERSIONS):
            yield "integer-input", f"{node.op_type} of the uint8 {name}: cast it to float first"
        elif kind == "int8" and node.op_type not in _CONVERSIONS:
            yield "integer-input", f"{node.op_type} of the int8 {name}: put DequantizeLinear in between"


def _types(context: _Context, node: Any) -> Broken:
    """An operator takes the types that it is defined for, and the same one wherever its definition says so."""
    schema = context.schema(node)
    if schema is None:
        return
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    kinds: dict[str, set[str]] = {}
    for i, name in enumerate(node.input):
        parameter = schema.inputs[min(i, len(schema.inputs) - 1)]
        if (kind := context.type_name(name)) and parameter.is_homogeneous:
            kinds.setdefault(parameter.type_str, set()).add(kind)
    for variable, found in kinds.items():
        if len(found) > 1:
            yield "mixed-types", f"{node.op_type} of {' and '.join(sorted(found))}: cast one to the other's type"
        elif unknown := {kind for kind in found if f"tensor({kind})" not in allowed.get(variable, [variable])}:
            yield "type", f"{node.op_type} takes no {unknown.pop()} at this opset: cast it, or export at a newer one"


def _finite(context: _Context, node: Any) -> Broken:
    """A mask of minus infinity gives NaN, which spreads to every row."""
    for name in node.input if node.op_type not in _CONVERSIONS else ():
        value = context.constant(name)
        if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
            yield "not-finite", f"{name} holds infinity or NaN: use a finite number, for masks -10000"


def _half_precision(context: _Context, node: Any) -> Broken:
    if node.op_type in _OVERFLOWING and context.type_name(node.input[0]) == "float16":
        yield "half-precision", f"{node.op_type} overflows in float16: cast to float before it, and back behind it"


_RULES: tuple[Callable[[_Context, Any], Broken], ...] = (
    _scales,
    _zero_points,
    _weight_axes,
    _integer_inputs,
    _types,
    _finite,
    _half_precision,
)
