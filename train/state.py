"""States from which training resumes exactly: written whole or not at all, checked when read, a few newest kept.

step-00000500.safetensors   every tensor: weights, averages, moments, random generators
step-00000500.json          its SHA-256 and what is no tensor; written last, so that it vouches for the other
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from edgeclip.errors import CheckpointError, ResourceError

_NAME = re.compile(r"step-(\d{8})\.json")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RNG = "rng.cpu"
_CUDA_RNG = "rng.cuda"


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The JSON beside the tensors."""

    step: int
    """Steps that are done."""
    recipe: dict[str, Any]
    sha256: str = ""
    scaler: dict[str, Any] = {}


@dataclass(frozen=True)
class State:
    """Where training was."""

    facts: Facts
    tensors: dict[str, Tensor]


def write_state(folder: Path, facts: Facts, tensors: Mapping[str, Tensor], *, keep: int) -> Path:
    """Add a state; then remove the oldest of more than `keep`.

    Raises:
        ResourceError: the disk is full. Earlier states are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"step-{facts.step:08d}"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    described = msgspec.structs.replace(facts, sha256=hashlib.sha256(data).hexdigest())
    try:
        _publish(folder / f"{stem}.safetensors", data)
        _publish(folder / f"{stem}.json", msgspec.json.encode(described))
    except OSError as exc:
        last = _stems(folder)
        kept = f"the last whole state is {last[0]}" if last else "there is no earlier state"
        reason = "the disk or a quota is full" if exc.errno in _FULL else str(exc.strerror or exc)
        raise ResourceError(
            f"{folder / stem}: cannot be written: {reason}; {kept}", hint="free some space and run with --resume"
        ) from exc
    for old in _stems(folder)[keep:]:
        _remove(folder, old)
    return folder / f"{stem}.json"


def newest_state(folder: Path) -> State | None:
    """The newest state that is whole, None where there is none; torn ones are passed over.

    Raises:
        CheckpointError: there are states, but none is whole.
    """
    stems = _stems(folder)
    for stem in stems:
        with suppress(_TornError):
            return _read(folder, stem)
    if stems:
        raise CheckpointError(f"{folder}: none of {len(stems)} states is whole", hint="remove the folder to start anew")
    return None


class _TornError(Exception):
    """A state that was not written to its end, or was damaged since."""


def _read(folder: Path, stem: str) -> State:
    try:
        facts = msgspec.json.decode((folder / f"{stem}.json").read_bytes(), type=Facts)
        data = (folder / f"{stem}.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != facts.sha256:
            raise _TornError
        return State(facts, load(data))
    except (OSError, msgspec.MsgspecError, SafetensorError) as exc:
        raise _TornError from exc


def _stems(folder: Path) -> list[str]:
    """Newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((name.removesuffix(".json") for name in names if _NAME.fullmatch(name)), reverse=True)


def _publish(path: Path, data: bytes) -> None:
    """Write a file that has its name when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove(folder: Path, stem: str) -> None:
    for suffix in (".json", ".safetensors"):
        (folder / f"{stem}{suffix}").unlink(missing_ok=True)


def collect(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run, by `module.name`, `optimizer.parameter.moment` and `rng.device`."""
    tensors = {f"{key}.{name}": value for key, module in modules.items() for name, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors[_RNG] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[_CUDA_RNG] = torch.cuda.get_rng_state()
    return tensors


def restore(state: State, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put everything back where `collect` found it."""
    for key, module in modules.items():
        module.load_state_dict(_under(state.tensors, key))
    saved = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(state.tensors, "optimizer").items():
        index, _, field = name.partition(".")
        moments.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**saved, "state": moments})
    _match_layout(optimizer)
    torch.set_rng_state(state.tensors[_RNG])
    if torch.cuda.is_available() and _CUDA_RNG in state.tensors:
        torch.cuda.set_rng_state(state.tensors[_CUDA_RNG])


def _under(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{key}."): tensor for n, tensor in tensors.items() if n.startswith(f"{key}.")}


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Files hold tensors row by row; the fused optimizer walks a weight and its moments in the order of memory."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
