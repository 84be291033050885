"""The one door to a checkpoint: any format, recognised by its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import msgspec
from torch import Tensor

from edgeclip.errors import CheckpointError, UsageError
from edgeclip.manifest import Preprocess
from edgeclip.quantize.scales import Learned
from edgeclip.train.checkpoints import hub
from edgeclip.train.checkpoints.checkpoint import UNKNOWN, Checkpoint, Format, Origin, check_state
from edgeclip.train.checkpoints.files import find_licence, find_tokenizer, find_weights
from edgeclip.train.checkpoints.huggingface import read_huggingface
from edgeclip.train.checkpoints.infer import infer_config, openai_preprocess
from edgeclip.train.checkpoints.names import from_huggingface, from_openai, is_huggingface, is_openai
from edgeclip.train.checkpoints.openclip import CONFIG as OPENCLIP_CONFIG
from edgeclip.train.checkpoints.openclip import read_openclip
from edgeclip.train.checkpoints.own import DESCRIPTION, read_own
from edgeclip.train.checkpoints.weights import Weights, read_weights
from edgeclip.train.models.config import Activation, ClipConfig, load_config


@dataclass(frozen=True)
class _Model:
    """What a reader of one format finds out."""

    format: Format
    config: ClipConfig
    preprocess: Preprocess
    state_dict: dict[str, Tensor]
    described: bool = True
    """The directory's configuration belongs to the weights."""
    origin: Origin = UNKNOWN
    scales: Learned | None = None
    matryoshka: tuple[int, ...] = ()


def read_checkpoint(
    source: str | Path,
    *,
    allow_pickle: bool = False,
    architecture: str | None = None,
    activation: str | None = None,
) -> Checkpoint:
    """Read a file, a directory or `hf-hub:org/name[@revision]`.

    Args:
        allow_pickle: Load pickles that hold more than tensors. That runs whatever code they contain.
        architecture: Name of a published architecture, for weights without a configuration whose shapes do not tell it.
        activation: `quick_gelu` or `gelu`; overrides what the checkpoint says.

    Raises:
        CheckpointError: it cannot be found, read or understood.
        CheckpointUnsafeError: it is a pickle that holds more than tensors.
        NonFiniteError: the weights hold NaN or infinity.
        TargetUnavailableError: a hub reference, and huggingface_hub is not installed.
        UsageError: no such architecture or activation, or the checkpoint says its architecture itself.
    """
    if activation not in (None, *get_args(Activation)):
        raise UsageError(f"unknown activation {activation!r}", hint="quick_gelu or gelu")
    path, name = _locate(str(source))
    folder = path if path.is_dir() else path.parent
    override = cast("Activation | None", activation)
    if path.is_dir() and (folder / DESCRIPTION).is_file():
        _refuse_architecture(architecture, DESCRIPTION)
        model, weights = _own(folder)
    else:
        weights = read_weights(find_weights(folder) if path.is_dir() else [path], allow_pickle=allow_pickle)
        model = _foreign(weights, folder, name, architecture, override)
    config = model.config.with_activation(override) if override else model.config
    check_state(model.state_dict, config, name)
    carries = path.is_dir() or model.described
    return Checkpoint(
        config=config,
        state_dict=model.state_dict,
        preprocess=model.preprocess,
        tokenizer=find_tokenizer(folder) if carries else None,
        format=model.format,
        sha256=weights.sha256,
        source=name,
        origin=_origin(model, folder if carries else None),
        scales=model.scales,
        matryoshka=model.matryoshka,
    )


def _origin(model: _Model, folder: Path | None) -> Origin:
    """As the checkpoint says; a licence that it does not say may stand in the folder's README."""
    if model.origin.licence or folder is None:
        return model.origin
    return msgspec.structs.replace(model.origin, licence=find_licence(folder))


def _locate(source: str) -> tuple[Path, str]:
    """Where the checkpoint lies, and what it is called."""
    if source.startswith(hub.PREFIX):
        return hub.download(source), source
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{source}: no such file or directory", hint="a hub model is written hf-hub:org/name")
    return path, path.resolve().name


def _own(folder: Path) -> tuple[_Model, Weights]:
    about, weights, scales = read_own(folder)
    model = _Model(
        "edgeclip",
        about.config,
        about.preprocess,
        weights.tensors,
        origin=about.origin,
        scales=scales,
        matryoshka=about.matryoshka,
    )
    return model, weights


def _foreign(
    weights: Weights, folder: Path, where: str, architecture: str | None, activation: Activation | None
) -> _Model:
    """A model of another project, told by the names of its tensors."""
    if is_huggingface(weights.tensors):
        _refuse_architecture(architecture, "config.json")
        config, preprocess = read_huggingface(folder)
        return _Model("huggingface", config, preprocess, from_huggingface(weights.tensors))
    if not is_openai(weights.tensors):
        some = ", ".join(sorted(weights.tensors)[:3])
        hint = f"pass the directory that holds {DESCRIPTION}" if (folder / DESCRIPTION).is_file() else ""
        raise CheckpointError(f"{where}: no CLIP model known to edgeclip has tensors named {some}", hint=hint)
    if any(name.startswith("visual.trunk.") for name in weights.tensors):
        raise CheckpointError(f"{where}: image towers of timm are not supported")
    state = from_openai(weights.tensors)
    if not weights.openai and (folder / OPENCLIP_CONFIG).is_file():
        _refuse_architecture(architecture, OPENCLIP_CONFIG)
        config, preprocess = read_openclip(folder)
        return _Model("openclip", config, preprocess, state)
    return _undescribed(state, weights.openai, where, architecture, activation)


def _undescribed(
    state: dict[str, Tensor], openai: bool, where: str, architecture: str | None, activation: Activation | None
) -> _Model:
    """Weights without a configuration: all is read off their shapes, but for the activation, which has none."""
    activation = activation or ("quick_gelu" if openai else None)
    if activation is None:
        raise CheckpointError(
            f"{where}: the weights do not tell their activation, and there is no {OPENCLIP_CONFIG} beside them",
            hint="pass --activation quick_gelu or --activation gelu; a wrong one costs points of accuracy",
        )
    if architecture:
        config = load_config(architecture).with_activation(activation)
    else:
        config = infer_config(state, activation, where)
    preprocess = openai_preprocess(config.image_size)
    return _Model("openai" if openai else "openclip", config, preprocess, state, described=False)


def _refuse_architecture(architecture: str | None, file: str) -> None:
    if architecture is not None:
        raise UsageError(f"the checkpoint's {file} says its architecture", hint="drop --architecture")
