"""edgeclip's own checkpoint: `edgeclip.json`, `model.safetensors` and, where there are some, the tokenizer and scales.

`scales.safetensors` is that of a model that was trained with rounding. The weights beside it are not rounded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from edgeclip.errors import CheckpointError, ExportExistsError, ResourceError, UsageError
from edgeclip.manifest import Preprocess
from edgeclip.quantize.scales import FILE as SCALES
from edgeclip.quantize.scales import Learned
from edgeclip.train.checkpoints.checkpoint import UNKNOWN, Origin
from edgeclip.train.checkpoints.files import read_json
from edgeclip.train.checkpoints.weights import Weights, digest, read_weights
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig

DESCRIPTION = "edgeclip.json"
WEIGHTS = "model.safetensors"
FORMAT_VERSION = 1
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`edgeclip.json`."""

    format_version: int
    config: ClipConfig
    preprocess: Preprocess
    weights_sha256: str
    """Of `model.safetensors`: a description and weights of different models are told apart."""
    scales_sha256: str = ""
    """Of `scales.safetensors`; empty where there is none."""
    matryoshka: tuple[int, ...] = ()
    """How many of the first coordinates are an embedding of their own."""
    origin: Origin = UNKNOWN

    def __post_init__(self) -> None:
        if list(dims := (*self.matryoshka, self.config.embed_dim)) != sorted(set(dims)) or dims[0] < 1:
            raise ValueError(f"matryoshka must ascend below {self.config.embed_dim}, got {list(self.matryoshka)}")


def save_checkpoint(
    clip: Clip,
    folder: str | Path,
    preprocess: Preprocess,
    tokenizer: str | Path | None = None,
    *,
    origin: Origin = UNKNOWN,
    half: bool = False,
    scales: Learned | None = None,
    matryoshka: tuple[int, ...] = (),
) -> Path:
    """Write a model as a directory that `read_checkpoint` reads; half of one is never visible.

    Args:
        tokenizer: `tokenizer.json`, or a directory that holds it or `vocab.json` and `merges.txt`.
        half: write float16, which reads back as float32.
        scales: that the model has learned; layers are named as its modules.
        matryoshka: how many of the first coordinates are an embedding of their own, ascending.

    Raises:
        CheckpointError: a weight is beyond what float16 holds.
        ExportExistsError: `folder` exists; nothing is ever replaced.
        UsageError: there is no such tokenizer.
        ResourceError: the disk is full.
    """
    folder = Path(folder)
    files = _tokenizer_files(tokenizer)
    if folder.exists():
        raise ExportExistsError(f"{folder.name}: exists already", hint="choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        try:
            _write(clip, fresh, preprocess, files, origin, scales, matryoshka, half=half)
        except (OSError, SafetensorError) as exc:  # the library has its own error for a full disk
            reason = getattr(exc, "strerror", None) or exc
            raise ResourceError(f"{folder.name}: cannot be written: {reason}", hint="free some space") from exc
        fresh.rename(folder)
    return folder


def _tokenizer_files(tokenizer: str | Path | None) -> list[Path]:
    if tokenizer is None:
        return []
    path = Path(tokenizer)
    files = [path] if path.is_file() else [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    if not files:
        raise UsageError(f"{path.name}: no tokenizer", hint=f"looked for {', '.join(_TOKENIZER_FILES)}")
    return files


def _write(
    clip: Clip,
    folder: Path,
    preprocess: Preprocess,
    tokenizer: list[Path],
    origin: Origin,
    scales: Learned | None,
    matryoshka: tuple[int, ...],
    *,
    half: bool,
) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in clip.state_dict().items()}
    if half:
        state = {name: _halved(name, tensor) for name, tensor in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    for file in tokenizer:
        shutil.copyfile(file, folder / (file.name if len(tokenizer) > 1 else "tokenizer.json"))
    if scales is not None:
        (folder / SCALES).write_bytes(scales.to_bytes())
    description = Description(
        format_version=FORMAT_VERSION,
        config=clip.config,
        preprocess=preprocess,
        weights_sha256=digest([folder / WEIGHTS]),
        scales_sha256="" if scales is None else digest([folder / SCALES]),
        matryoshka=matryoshka,
        origin=origin,
    )
    (folder / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n")
    for file in folder.iterdir():
        _sync(file)


def _halved(name: str, tensor: Tensor) -> Tensor:
    halved = tensor.half() if tensor.is_floating_point() else tensor
    if not bool(halved.isfinite().all()):
        raise CheckpointError(f"{name}: beyond what float16 holds", hint="keep the checkpoint in float32")
    return halved


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def read_own(folder: Path) -> tuple[Description, Weights, Learned | None]:
    """The description, the weights, and the scales where there are some, with their digests checked.

    Raises:
        CheckpointError: a file is damaged, or they do not belong together.
    """
    description = read_json(folder / DESCRIPTION, Description)
    if description.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{DESCRIPTION}: format version {description.format_version}, this edgeclip reads {FORMAT_VERSION}",
            hint="pip install -U edgeclip",
        )
    weights = read_weights([folder / WEIGHTS])
    if weights.sha256 != description.weights_sha256:
        raise CheckpointError(f"{WEIGHTS}: not the weights that {DESCRIPTION} describes", hint="get both files again")
    return description, weights, _read_scales(folder, description, weights) if description.scales_sha256 else None


def _read_scales(folder: Path, description: Description, weights: Weights) -> Learned:
    try:
        data = (folder / SCALES).read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{SCALES}: {exc.strerror}", hint="the checkpoint has learned scales: get them") from exc
    if hashlib.sha256(data).hexdigest() != description.scales_sha256:
        raise CheckpointError(f"{SCALES}: not the scales that {DESCRIPTION} describes", hint="get both files again")
    scales = Learned.from_bytes(data)
    for name, one in scales.layers.items():
        weight = weights.tensors.get(f"{name}.weight")
        outputs, groups = one.weight_scale.shape if one.weight_scale.ndim == 2 else (0, 1)
        if weight is None or weight.ndim < 2 or weight.shape[0] != outputs or weight[0].numel() % groups:
            raise CheckpointError(f"{SCALES}: its scales do not fit {name}", hint="get the checkpoint again")
    return scales
