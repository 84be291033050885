"""A traced graph as Core ML's converter takes it: nothing idle, shapes that are known, names that say something."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from edgeclip.errors import ExportError
from edgeclip.export.coreml_graph import MAX_TEXTS
from edgeclip.manifest import Tower

_LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
_IDLE = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_OUTSIDE = "outside"


def trace(graph: nn.Module, example: Tensor, tower: Tower) -> ExportedProgram:
    """Trace a graph of `coreml_graph`. Images come one by one, texts in any number up to `MAX_TEXTS`.

    Convolutions and linear layers are named after their modules, as `transformer__blocks__0__mlp__expand`, which is
    the name of the layer in ONNX with other separators; other operators after the module that they are in and what
    they do, as `transformer__blocks__0__attention__softmax`; `outside` stands for no module.

    Raises:
        ExportError: PyTorch cannot trace the graph.
    """
    dynamic = None if tower == "image" else ({0: Dim("batch", min=1, max=MAX_TEXTS)},)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of PyTorch's own
            traced = torch.export.export(graph, (example,), dynamic_shapes=dynamic, strict=False)
            program: ExportedProgram = traced.run_decompositions({})
    except Exception as exc:
        reason = str(exc).strip().split("\n", 1)[0][:300]
        raise ExportError(f"{tower} tower: PyTorch cannot trace it: {type(exc).__name__}: {reason}") from exc
    _tidy(program.graph_module)
    _rename(program.graph)
    program.graph_module.recompile()
    return program


def _tidy(module: fx.GraphModule) -> None:
    """Remove what computes nothing, and let reshapes find the batch themselves rather than by operators."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDLE:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in _VIEWS:
            node.args = (node.args[0], _known(node.args[1], node.meta["val"].shape))
    module.graph.eliminate_dead_code()


def _known(shape: Any, value: torch.Size) -> list[Any]:
    """The shape of a reshape with −1 for the one size that is not known, if there is one."""
    unknown = [isinstance(size, fx.Node) for size in shape]
    if sum(unknown) != 1:
        return list(shape)
    return [-1 if missing else int(size) for missing, size in zip(unknown, value, strict=True)]


def _rename(graph: fx.Graph) -> None:
    """All but the last operator, whose name the program's signature holds."""
    results = graph.output_node().all_input_nodes
    for node in graph.nodes:
        if node.op != "call_function" or node in results:
            continue
        module = module_of(node)
        parts = [module.replace(".", "__")] if module else [_OUTSIDE]
        if node.target not in _LAYERS:
            parts.append(node.name)
        node.name = "__".join(parts)


def module_of(node: fx.Node) -> str:
    """The innermost module that an operator is from, as `transformer.blocks.0.mlp.expand`; "" outside the tower."""
    path = list(node.meta["nn_module_stack"].values())[-1][0]
    if not path:
        return ""
    return str(path.removeprefix("tower").removeprefix(".").removeprefix("text").removeprefix(".")) or "tower"
