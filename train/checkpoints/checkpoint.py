"""A checkpoint in edgeclip's own terms, whatever wrote it, and the model that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from edgeclip.errors import CheckpointError, NonFiniteError
from edgeclip.manifest import Preprocess
from edgeclip.quantize.scales import Learned
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig

Format = Literal["openai", "openclip", "huggingface", "edgeclip"]

SHOWN = 3
"""How many tensors an error names."""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is said of where weights come from; empty where nothing is."""

    licence: str = ""
    recipe: str = ""
    """That they were trained by."""
    data: str = ""
    """That they were trained on."""


UNKNOWN = Origin()


@dataclass(frozen=True)
class Checkpoint:
    """Weights with everything that is needed to use them."""

    config: ClipConfig
    state_dict: dict[str, Tensor]
    """float32 on the CPU, named as `Clip`'s; checked to be finite and to fit `config`."""
    preprocess: Preprocess
    tokenizer: Path | None
    """`tokenizer.json`, or the directory of `vocab.json` and `merges.txt`; None where the checkpoint carries none."""
    format: Format
    sha256: str
    """Of the weights' file, or of the sorted list of digests and names where there are several."""
    source: str
    """Base name or hub reference, never a path."""
    origin: Origin = UNKNOWN
    scales: Learned | None = None
    """That were learned with the weights, for a precision of integers; None where there are none."""
    matryoshka: tuple[int, ...] = ()
    """How many of the first coordinates are an embedding of their own, ascending."""


def build(checkpoint: Checkpoint) -> Clip:
    """The model, in evaluation mode. It shares no memory with the checkpoint."""
    clip = _skeleton(checkpoint.config)
    clip.load_state_dict({name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}, assign=True)
    clip.text.reset_mask()
    return clip.eval()


def check_state(state_dict: Mapping[str, Tensor], config: ClipConfig, where: str) -> None:
    """Compare names and shapes with what `config` makes, then look at every value.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
        NonFiniteError: a tensor holds NaN or infinity.
    """
    expected = _skeleton(config).state_dict()
    _refuse(where, "lacks", [name for name in expected if name not in state_dict])
    _refuse(where, "has unexpected", [name for name in state_dict if name not in expected])
    wrong = [name for name, tensor in expected.items() if tensor.shape != state_dict[name].shape]
    shapes = [f"{name} {_shape(state_dict[name])} instead of {_shape(expected[name])}" for name in wrong]
    _refuse(where, f"does not fit {config.name}:", shapes)
    bad = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise NonFiniteError(f"{where}: NaN or infinity in {_some(bad)}", hint="get the weights again")


def _skeleton(config: ClipConfig) -> Clip:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Clip(config)


def _refuse(where: str, verb: str, names: list[str]) -> None:
    if names:
        raise CheckpointError(f"{where}: {verb} {_some(names)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
