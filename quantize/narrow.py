"""Half precision around integer layers, where a float32 graph has been quantized.

Of a model in 8 bits, TensorRT computes in float what lies between the layers. In half precision that takes half of the
time and the room, and, as in an fp16 artifact, what squares or sums up stays in float32: LayerNorm, softmax, means, and
all that comes behind the last layer; and so does what comes before the first one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclip.errors import ExportError
from edgeclip.quantize import graphs, layers

OPSET = 19
"""The first whose QuantizeLinear and DequantizeLinear take half precision."""
WIDE = frozenset({"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2"})
_BEGINNING = frozenset({*layers.OPS, "QuantizeLinear", "DequantizeLinear"})
_SMALLEST = np.float16(2.0**-24)


def narrow(model: Any) -> None:
    """Convert a quantized float32 ModelProto of opset 19 or above in place; its input and output stay as they are.

    Raises:
        ExportError: a weight is beyond what half precision holds.
    """
    _Narrowing(model).run()


class _Narrowing:
    """One graph, node by node in its order."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._onnx = onnx
        self._single, self._half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        self._graph = model.graph
        self._types = graphs.element_types(model)
        self._tensors = dict(graphs.tensors(model.graph))
        self._narrowed: set[str] = set()
        """Computed values that are in half precision now."""
        self._converted: dict[tuple[str, int], str] = {}
        self._nodes: list[Any] = []

    def run(self) -> None:
        nodes = list(self._graph.node)
        last = max(i for i, node in enumerate(nodes) if node.op_type in layers.OPS)
        for i, node in enumerate(nodes):
            if i <= last and self._is_narrow(node):
                self._convert(node, self._half)
                self._narrowed.update(name for name in node.output if self._types.get(name) == self._single)
            else:
                self._convert(node, self._single)
            self._nodes.append(node)
        graphs.replace(self._graph.node, self._nodes)
        graphs.drop_unused(self._graph)
        del self._graph.value_info[:]  # of types that are no more

    def _is_narrow(self, node: Any) -> bool:
        """Whether a node computes in half precision: layers do, conversions and tables, and what reads their results.

        What comes of integers alone, as the positions of ends of texts do, stays as it is.
        """
        if node.op_type in WIDE:
            return False
        of_table = node.op_type == "Gather" and node.input[0] in self._tensors
        return node.op_type in _BEGINNING or of_table or not self._narrowed.isdisjoint(node.input)

    def _convert(self, node: Any, kind: int) -> None:
        """Have a node read its floating-point inputs in this type."""
        for i, name in enumerate(node.input):
            if self._types.get(name) != self._single:
                continue
            if name in self._tensors:
                node.input[i] = self._constant(name) if kind == self._half else name
            elif kind != (self._half if name in self._narrowed else self._single):
                node.input[i] = self._cast(name, kind)

    def _constant(self, name: str) -> str:
        """The name of a constant's half-precision copy."""
        if (name, self._half) not in self._converted:
            value = graphs.to_array(self._tensors[name])
            with np.errstate(over="ignore"):
                half = value.astype(np.float16)
            if np.isinf(half).any():
                raise ExportError(f"{name}: half precision holds no {np.abs(value).max():g}", hint="use fp32")
            half[(half == 0) & (value > 0)] = _SMALLEST  # a scale of 0 would be none
            self._converted[name, self._half] = f"{name}/half"
            self._graph.initializer.append(self._onnx.numpy_helper.from_array(half, f"{name}/half"))
        return self._converted[name, self._half]

    def _cast(self, name: str, kind: int) -> str:
        """The name of a value in another type."""
        if (name, kind) not in self._converted:
            output = self._converted[name, kind] = f"{name}/{'half' if kind == self._half else 'single'}"
            self._nodes.append(self._onnx.helper.make_node("Cast", [name], [output], name=output, to=kind))
        return self._converted[name, kind]
