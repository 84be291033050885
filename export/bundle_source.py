"""The PyTorch model that a bundle was made from, out of its ONNX, which keeps the names of parameters and layers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from edgeclip.bundle import Bundle
from edgeclip.errors import UsageError
from edgeclip.export.source import Source
from edgeclip.manifest import Tower
from edgeclip.quantize import graphs
from edgeclip.quantize.bundled import portable
from edgeclip.quantize.layers import OPS
from edgeclip.quantize.widen import widen
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, load_config
from edgeclip.train.models.folding import fold_in_place

_PREFIX = "tower."
"""Of the names of a tower's parameters in ONNX."""


def source_of(bundle: Bundle, towers: Iterable[Tower]) -> Source:
    """A bundle's model as if its checkpoint were there; the other towers have no weights of it.

    Raises:
        UsageError: it has no floating-point ONNX of a tower, is of no architecture with a name, or its ONNX has not all
            weights by their names.
    """
    manifest = bundle.manifest
    config = _config(bundle)
    if manifest.tokenizer is None:
        raise UsageError(f"{bundle.path}: has no text tower", hint="export the checkpoint")
    clip = Clip(config).eval()
    fold_in_place(clip.image)
    for tower in towers:
        module: nn.Module = getattr(clip, tower)
        found = weights_of(module, widen(bundle.read(portable(bundle, tower).file)))
        for name, parameter in module.state_dict().items():
            if name not in found or found[name].shape != parameter.shape:
                raise UsageError(
                    f"{bundle.path}: the ONNX of the {tower} tower has no {name} as {config.name} has it",
                    hint="export the checkpoint",
                )
        module.load_state_dict(found)
    return Source(
        clip=clip,
        preprocess=manifest.preprocess,
        tokenizer=bundle.read(manifest.tokenizer.file),
        tokenizer_spec=manifest.tokenizer,
        model=manifest.model,
        provenance=manifest.provenance,
    )


def _config(bundle: Bundle) -> ClipConfig:
    model = bundle.manifest.model
    try:
        return load_config(model.name).with_activation(model.activation)
    except UsageError as exc:
        raise UsageError(
            f"{bundle.path}: target coreml is made from a bundle only where the model has the name of an "
            f"architecture, and {model.name!r} is none",
            hint="export the checkpoint",
        ) from exc


def weights_of(module: nn.Module, model: bytes) -> dict[str, Tensor]:
    """Those of a tower's parameters and buffers that its fp32 ONNX has, batch normalisation folded."""
    graph = graphs.parse(model).graph
    tensors = {tensor.name: graphs.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type in OPS and node.input[1] in tensors:  # of a linear layer the transposed weight has no name
            found.setdefault(f"{node.name}.weight", np.ascontiguousarray(tensors[node.input[1]].T))
    return {name: torch.tensor(found[name]) for name in module.state_dict() if name in found}
