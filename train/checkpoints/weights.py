"""Weights from files of any kind, recognised by their first bytes; no code of a file runs unless that was asked for."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.errors import CheckpointError, CheckpointUnsafeError

Container = Literal["safetensors", "torchscript", "pickle"]

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Entries beside the weights that only OpenAI's releases have."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""


@dataclass(frozen=True)
class Weights:
    """Named tensors as a file has them, in float32."""

    tensors: dict[str, Tensor]
    openai: bool
    """The file has the marks of OpenAI's releases: a TorchScript archive, or their extra entries."""
    sha256: str


def read_weights(files: Sequence[Path], *, allow_pickle: bool = False) -> Weights:
    """Read one file, or the shards of one model.

    Raises:
        CheckpointError: a file is missing, truncated, a Git LFS pointer, or no weights at all.
        CheckpointUnsafeError: a pickle holds more than tensors.
    """
    containers = [sniff(file) for file in files]
    tensors: dict[str, Any] = {}
    for file, container in zip(files, containers, strict=True):
        tensors |= _read(file, container, allow_pickle)
    openai = "torchscript" in containers or all(name in tensors for name in OPENAI_EXTRAS)
    named = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_EXTRAS}
    return Weights({n: _as_float32(n, t, files[0]) for n, t in named.items()}, openai, digest(files))


def sniff(file: Path) -> Container:
    """What kind of file it is, by its content.

    Raises:
        CheckpointError: it is none that can hold weights.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.name}: no such file", hint="is the checkpoint complete?")
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file.name}: a Git LFS pointer, not the weights", hint="run `git lfs pull`")
    if head.startswith(b"PK"):
        return _sniff_zip(file)
    if head[:1] == b"\x80":
        return "pickle"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(f"{file.name}: neither safetensors nor a PyTorch checkpoint", hint="is the file complete?")


def _sniff_zip(file: Path) -> Container:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as exc:
        raise CheckpointError(f"{file.name}: truncated or damaged: {exc}", hint="get the file again") from exc
    return "torchscript" if any(name.endswith("/constants.pkl") for name in names) else "pickle"


def _read(file: Path, container: Container, allow_pickle: bool) -> dict[str, Any]:
    if container == "safetensors":
        return _unwrap(_read_safetensors(file), file)
    if container == "torchscript":
        return _unwrap(_read_torchscript(file), file)
    return _unwrap(_read_pickle(file, allow_pickle), file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as exc:
        raise CheckpointError(f"{file.name}: truncated or damaged: {exc}", hint="get the file again") from exc
    return tensors


def _read_torchscript(file: Path) -> dict[str, Tensor]:
    """The tensors of an archive. Its code is TorchScript's own restricted language, and is not called."""
    with warnings.catch_warnings():
        # The format is deprecated, but OpenAI's weights exist in no other.
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
        try:
            module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as exc:  # a damaged archive can raise anything, even in the making of its message
            raise CheckpointError(f"{file.name}: damaged archive: {_first_line(exc)}", hint="get it again") from exc
    return dict(module.state_dict())


def _read_pickle(file: Path, allow_pickle: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except Exception as exc:  # a damaged pickle can raise anything
        if isinstance(exc, pickle.UnpicklingError) and not allow_pickle:
            raise CheckpointUnsafeError(
                f"{file.name}: the pickle holds more than tensors, or is damaged; loading it could run its code",
                hint="convert it to safetensors, or pass --allow-pickle if you trust who made it",
            ) from exc
        raise CheckpointError(f"{file.name}: truncated or damaged: {_first_line(exc)}", hint="get it again") from exc


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]


def _unwrap(content: Any, file: Path) -> dict[str, Any]:
    """The state dict inside a training checkpoint, without the prefixes of wrappers."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping | nn.Module):
            content = content[key]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file.name}: holds {type(content).__name__}, not a state dict")
    state = {str(name): value for name, value in content.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _as_float32(name: str, tensor: Any, file: Path) -> Tensor:
    """Weights of any floating type become float32; integers are counters and stay."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{file.name}: {name} is {type(tensor).__name__}, not a tensor")
    return tensor.detach().float().contiguous() if tensor.is_floating_point() else tensor


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of the sorted list of digests and names of several."""
    digests = [f"{_sha256(file)}  {file.name}\n" for file in files]
    if len(files) == 1:
        return digests[0].split()[0]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _sha256(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
