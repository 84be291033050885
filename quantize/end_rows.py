"""The end-of-text rows of a text tower, picked by products with zeros and ones instead of by indices.

PyTorch exports `x[arange(B), at]` as a Range as long as the batch and a GatherND. An engine that was built from that by
TensorRT 8.6 gave right embeddings for one text and wrong ones for more. A comparison, a cast and a product are what
every engine gets right, and they cost nothing beside a layer. Each product has a single term that is not 0.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from edgeclip.quantize import graphs


def pick_by_products(model: Any) -> None:
    """Replace every GatherND that picks the row where an ArgMax lies, in place. Values do not change.

    A ModelProto of another kind stays as it is.
    """
    found = [node for node in model.graph.node if node.op_type == "ArgMax"]
    picker = _Picker(model, found[0]) if len(found) == 1 else None
    if picker and picker.cut:
        picker.run()


class _Picker:
    """Rewrites one graph."""

    def __init__(self, model: Any, argmax: Any) -> None:
        self._graph, self._argmax = model.graph, argmax
        self._types = graphs.element_types(model)
        self._made_by = {name: node for node in self._graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._new: list[Any] = []
        """Nodes in the place of one."""
        self._hot: dict[int, str] = {}
        """1 where the picked row is and 0 elsewhere, [B, C], by element type."""

    @cached_property
    def cut(self) -> Any:
        """A Slice that cuts a table of a row for each position to the length of the texts; None where there is none."""
        for node in self._graph.node:
            if node.op_type == "Slice" and len(node.input) > 3 and node.input[0] in self._tensors:
                axes = self._tensors.get(node.input[3])
                if axes is not None and graphs.to_array(axes).tolist() == [0]:
                    return node
        return None

    def run(self) -> None:
        nodes = []
        for node in self._graph.node:
            self._new = []
            self._replace(node)
            nodes += self._new or [node]
        graphs.replace(self._graph.node, nodes)
        graphs.drop_unread(self._graph)

    def _replace(self, node: Any) -> None:
        index = self._made_by.get(node.input[1]) if node.op_type == "GatherND" else None
        if self._is_at(index):
            self._pick_of_table(node)
        elif index is not None and index.op_type == "Concat" and len(index.input) == 2:
            if self._is_at(self._made_by.get(index.input[1])) and self._is_range(self._made_by.get(index.input[0])):
                self._pick_of_batch(node)
        elif node.op_type == "Range" and self._falls_to_one(node):
            self._cut_instead(node)

    def _is_at(self, node: Any) -> bool:
        return node is not None and node.op_type == "Unsqueeze" and node.input[0] == self._argmax.output[0]

    def _is_range(self, node: Any) -> bool:
        source = self._made_by.get(node.input[0]) if node is not None and node.op_type == "Unsqueeze" else None
        return source is not None and source.op_type == "Range"

    def _falls_to_one(self, ramp: Any) -> bool:
        """Whether it is float32 L, L - 1, … 1, for texts of length L."""
        if self._types.get(ramp.output[0]) != self._float or ramp.input[0] not in self._made_by:
            return False
        return [graphs.to_array(self._tensors[name]) for name in ramp.input[1:] if name in self._tensors] == [0, -1]

    def _pick_of_table(self, gather: Any) -> None:
        """A row of a table [C, N] for each sample: [B, C] x [C, N]."""
        self._add("MatMul", [self._one_hot(self._types[gather.input[0]]), gather.input[0]], gather.output[0])

    def _pick_of_batch(self, gather: Any) -> None:
        """A row of each sample of [B, C, W]: [B, 1, C] x [B, C, W]."""
        hot, out = self._one_hot(self._types[gather.input[0]]), gather.output[0]
        axis = self._constant(f"{out}/axis", np.array([1], np.int64))
        lifted = self._add("Unsqueeze", [hot, axis], f"{out}/hot")
        product = self._add("MatMul", [lifted, gather.input[0]], f"{out}/product")
        self._add("Squeeze", [product, axis], out)

    def _one_hot(self, kind: int) -> str:
        at = self._argmax.output[0]
        if not self._hot:
            axis = self._constant(f"{at}/axis", np.array([-1], np.int64))
            number = self._add("Cast", [at], f"{at}/number", to=self._float)
            column = self._add("Unsqueeze", [number, axis], f"{at}/column")
            self._add("Equal", [column, self._positions(f"{at}/positions", 0, 1)], f"{at}/here")
        if kind not in self._hot:
            self._hot[kind] = self._add("Cast", [f"{at}/here"], f"{at}/hot/{kind}", to=kind)
        return self._hot[kind]

    def _cut_instead(self, ramp: Any) -> None:
        """For a Range that falls from the length of the texts to 1, one that begins at the longest length.

        It is what an ArgMax prefers the first of equal positions by.
        """
        self._positions(ramp.output[0], int(self._tensors[self.cut.input[0]].dims[0]), -1)

    def _positions(self, output: str, start: int, step: int) -> str:
        """start, start + step, … float32 [C]."""
        longest = int(self._tensors[self.cut.input[0]].dims[0])
        whole = self._constant(f"{output}/whole", (start + step * np.arange(longest)).astype(np.float32))
        return self._add("Slice", [whole, *self.cut.input[1:]], output)

    @property
    def _float(self) -> int:
        import onnx

        return int(onnx.TensorProto.FLOAT)

    def _constant(self, name: str, value: graphs.Array) -> str:
        from onnx import numpy_helper

        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self._new.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output
