"""Learned scales in an ONNX model: the integers that training has computed with, bit for bit.

Weights become int8 initializers; of 4 bits, int8 with values from −7 to 7, since ONNX knows no narrower integers below
opset 21. Where a row of weights has several groups, it is cut into one for each group and put together again behind
it. Where activations are rounded, they pass QuantizeLinear and DequantizeLinear, and weights DequantizeLinear; else
weights pass Cast and Mul, which engines fold (see `onnx_weights`).

    x, W → Conv          Given
    x → QuantizeLinear → DequantizeLinear ─┐
    int8 W → DequantizeLinear ─────────────┴→ Conv          w8a8
    int8 W → Cast → Mul ───────────────────┴→ Conv          weights alone
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import UsageError
from edgeclip.quantize import graphs
from edgeclip.quantize.layers import OPS
from edgeclip.quantize.made import Made
from edgeclip.quantize.onnx_weights import store_table
from edgeclip.quantize.scales import Scales, integers

Array = NDArray[Any]


def with_scales(model: bytes, scales: Mapping[str, Scales], *, symmetric: bool, table: bool = False) -> Made:
    """An fp32 ONNX model of ours with exactly these scales.

    Args:
        scales: by the names of layers, which are the names of their nodes.
        symmetric: activations are int8 with zero point 0 rather than uint8.
        table: store the token table, which has no learned scales, in int8.

    Raises:
        TargetUnavailableError: `onnx` is missing.
        UsageError: a layer is not in the model, has another shape, or its zero point is not 0 as `symmetric` wants.
    """
    read = graphs.parse(model)
    editor = _Editor(read.graph, symmetric=symmetric)
    for name, one in scales.items():
        editor.quantize(name, one)
    editor.finish()
    if table:
        store_table(read.graph)
    return Made({graphs.file_name(read): graphs.serialize(read)}, frozenset(scales))


class _Editor:
    """Adds nodes before layers."""

    def __init__(self, graph: Any, *, symmetric: bool) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._graph = graph
        self._symmetric = symmetric
        self._layers = {node.name: node for node in graph.node if node.op_type in OPS}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._before: dict[str, list[Any]] = {}

    def quantize(self, name: str, scales: Scales) -> None:
        """One layer."""
        node = self._layers.get(name)
        if node is None or node.input[1] not in self._tensors:
            raise UsageError(f"{name}: no layer with weights is named so in the model", hint="other towers have others")
        self._before[name] = []
        if scales.activation_scale is not None:
            node.input[0] = self._activation(name, node.input[0], scales)
        node.input[1] = self._weight(name, node, scales)

    def finish(self) -> None:
        """Put the new nodes before their layers, and drop the weights that nothing reads any more."""
        nodes = [new for node in self._graph.node for new in (*self._before.get(node.name, ()), node)]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _activation(self, name: str, x: str, scales: Scales) -> str:
        if self._symmetric and scales.zero_point != 0:
            raise UsageError(f"{name}: its zero point is {scales.zero_point}, not 0", hint="symmetric=False")
        scale = self._add(f"{name}/input_scale", np.array(scales.activation_scale, np.float32))
        point = np.array(scales.zero_point, np.int8 if self._symmetric else np.uint8)
        parameters = [scale, self._add(f"{name}/input_zero_point", point)]
        whole = self._node("QuantizeLinear", name, "input_quantized", [x, *parameters])
        return self._node("DequantizeLinear", name, "input_dequantized", [whole, *parameters])

    def _weight(self, name: str, node: Any, scales: Scales) -> str:
        stored = self._numpy.to_array(self._tensors[node.input[1]])
        last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
        weight = np.ascontiguousarray(stored.T) if last else stored  # [O, I, ...]
        outputs, groups = scales.weight_scale.shape
        if weight.shape[0] != outputs or weight[0].size % groups:
            raise UsageError(f"{name}: scales {list(scales.weight_scale.shape)} for a weight {list(weight.shape)}")
        rows = integers(weight, scales)
        to_float = self._cast if scales.activation_scale is None else self._dequantized
        if groups == 1:
            whole = rows.reshape(weight.shape)
            return to_float(name, whole.T if last else whole, scales, axis=1 if last else 0)
        cut = to_float(name, rows, scales, axis=0)
        shape = self._add(f"{name}/weight_shape", np.array(weight.shape, np.int64))
        joined = self._node("Reshape", name, "weight_joined", [cut, shape])
        return self._node("Transpose", name, "weight_transposed", [joined], perm=[1, 0]) if last else joined

    def _dequantized(self, name: str, whole: Array, scales: Scales, *, axis: int) -> str:
        value = self._add(f"{name}/weight_int8", np.ascontiguousarray(whole))
        scale = self._add(f"{name}/weight_scale", scales.weight_scale.reshape(-1))
        point = self._add(f"{name}/weight_zero_point", np.zeros(scales.weight_scale.size, np.int8))
        return self._node("DequantizeLinear", name, "weight_dequantized", [value, scale, point], axis=axis)

    def _cast(self, name: str, whole: Array, scales: Scales, *, axis: int) -> str:
        value = self._add(f"{name}/weight_int8", np.ascontiguousarray(whole))
        factor = np.expand_dims(scales.weight_scale.reshape(-1), [i for i in range(whole.ndim) if i != axis])
        scale = self._add(f"{name}/weight_scale", factor)
        steps = self._node("Cast", name, "weight_float", [value], to=1)  # float32
        return self._node("Mul", name, "weight_scaled", [steps, scale])

    def _node(self, op: str, layer: str, output: str, inputs: list[str], **attributes: Any) -> str:
        result = f"{layer}/{output}"
        self._before[layer].append(self._helper.make_node(op, inputs, [result], name=result, **attributes))
        return result

    def _add(self, name: str, value: Array) -> str:
        self._graph.initializer.append(self._numpy.from_array(value, name))
        return name


def _attribute(node: Any, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
