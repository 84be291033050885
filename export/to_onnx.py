"""Target `onnx`: one self-contained ONNX file a tower."""

from __future__ import annotations

import ast
import logging
import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgeclip.errors import ExportError, UsageError
from edgeclip.manifest import Tower
from edgeclip.outcome import INPUT, OUTPUT

OPSETS = range(17, 21)
DEFAULT_OPSET = 18
LAYERS = ("Conv", "Gemm", "MatMul")
PROTOBUF_LIMIT = 2 << 30


def to_onnx(graph: nn.Module, tower: Tower, example: Tensor, opset: int = DEFAULT_OPSET) -> bytes:
    """Export a tower's graph; batch, and for text the context length, stay dynamic.

    Args:
        example: an input of the graph, with a batch of at least two.
        opset: 17 to 20, which TensorRT 10.3 and everything newer read.

    Returns:
        The serialised ModelProto: no external data, no trace of the exporting machine, the same bytes each time.

    Raises:
        UsageError: the opset is outside 17 to 20.
        ExportError: PyTorch cannot export the graph, or it exceeds protobuf's 2 GiB.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported", hint=f"{OPSETS.start} to {OPSETS.stop - 1}")
    dynamic = {0: Dim.DYNAMIC} if tower == "image" else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    # A mere notice that torchvision's operators are absent, four times an export.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # PyTorch's exporter trips over deprecations of its own; none concerns the graph.
            warnings.simplefilter("ignore")
            traced = torch.export.export(graph, (example,), dynamic_shapes=(dynamic,), strict=False)
            program = torch.onnx.export(
                traced,
                (example,),
                dynamo=True,
                opset_version=max(opset, DEFAULT_OPSET),
                input_names=[INPUT[tower]],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as exc:
        raise ExportError(f"{tower} tower: PyTorch cannot export it: {type(exc).__name__}: {_first_line(exc)}") from exc
    assert program is not None
    model = program.model_proto
    _name_layers(model.graph)  # before the version converter, which drops where nodes come from
    model = _at_opset(model, opset)
    _tidy(model, tower)
    if model.ByteSize() >= PROTOBUF_LIMIT:
        raise ExportError(f"{tower} tower: {model.ByteSize()} bytes, more than an ONNX file can hold", hint="use fp16")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _at_opset(model: Any, opset: int) -> Any:
    """PyTorch exports at 18 and above; LayerNormalization, the newest operator that we use, is of 17."""
    found = next(o.version for o in model.opset_import if o.domain == "")
    if found == opset:
        return model
    model = onnx.version_converter.convert_version(model, opset)
    for node in model.graph.node:  # what the converter leaves behind on its way down
        if opset < 18 and node.op_type.startswith("Reduce"):
            _drop_attribute(node, "noop_with_empty_axes")
    return model


def _drop_attribute(node: Any, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0][:300]


def _tidy(model: Any, tower: Tower) -> None:
    """Drop stack traces and metadata (they hold paths and change between runs), name the dynamic axes."""
    model.doc_string = ""
    model.producer_version = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name = f"clip_{tower}"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred shapes: every engine infers its own
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.initializer, *graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    _name_axes(graph.input[0], ("batch",) if tower == "image" else ("batch", "context"))
    _name_axes(graph.output[0], ("batch",))


def _name_layers(graph: Any) -> None:
    """Give layers the names of the modules that they come from, so that a person can be told which one it is."""
    taken: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in LAYERS:
            continue
        name = _module(node)
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}/{taken[name]}"


def _module(node: Any) -> str:
    """The innermost module that made a node, as `transformer.blocks.0.mlp.expand`."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    return str(modules[-1].removeprefix("tower.") if modules else node.name)


def _name_axes(value: Any, names: tuple[str, ...]) -> None:
    for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        dim.dim_param = name
