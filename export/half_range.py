"""Which operators of a program must not be computed in half precision, by what they are seen to compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from edgeclip.export.coreml_program import module_of

HEADROOM = 4.0
"""How many times larger than what was seen a number may become before half precision overflows."""
LIMIT = torch.finfo(torch.float16).max / HEADROOM
_aten = torch.ops.aten


def too_large_for_half(program: ExportedProgram, inputs: Iterable[Tensor]) -> list[str]:
    """Names of the operators that stay in float32, in graph order.

    They are those outside the tower, where pixels are scaled and embeddings normalised, and those that may meet numbers
    near the end of half precision's range: inputs, results, sums, or the squares that layer normalisation adds up.

    Args:
        inputs: what the program takes, one batch each, of the kind that it will see.
    """
    measured = _Measured(program.graph_module)
    for batch in inputs:
        with torch.no_grad():
            measured.run(*_arguments(program, batch))
    return [
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and (not module_of(node) or measured.largest.get(node.name, 0.0) > LIMIT)
    ]


def _arguments(program: ExportedProgram, batch: Tensor) -> list[Any]:
    """What the graph takes: weights first, as its signature lists them, then the batch."""
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    return [
        batch if spec.kind == InputKind.USER_INPUT else held[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]


class _Measured(fx.Interpreter):
    """Runs a graph, and notes the largest magnitude that each operator meets on its way."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.largest: dict[str, float] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            args, _ = self.fetch_args_kwargs_from_env(node)
            met = [x for x in (*tree_leaves(args), result) if isinstance(x, Tensor) and x.is_floating_point()]
            found = max(_inside(node.target, args), *(float(x.abs().max()) for x in met))
            self.largest[node.name] = max(found, self.largest.get(node.name, 0.0))
        return result


def _inside(target: Any, args: Any) -> float:
    """The largest number that an operator makes between its inputs and its result."""
    if target is _aten.layer_norm.default:
        axes = tuple(range(-len(args[1]), 0))
        centred = args[0] - args[0].mean(dim=axes, keepdim=True)
        return float(centred.square().sum(dim=axes).max())
    if target is _aten.mean.dim:
        return float(args[0].abs().sum(dim=args[1]).max())
    if target is _aten.sum.dim_IntList:
        return float(args[0].abs().sum(dim=args[1]).max())
    return 0.0
