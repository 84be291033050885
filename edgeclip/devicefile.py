"""The device file: what `edgeclip tune` found best for one bundle on one device, which `edgeclip.load` goes by.

    EDGECLIP_TUNED, or the user's configuration
    └── <sha256 of the bundle's manifest>.json

It chooses among artifacts that the bundle holds, all of whose bytes are verified as ever; it can bring in nothing else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgeclip import backends
from edgeclip.cpuinfo import cpu_model
from edgeclip.cpus import available_cpus
from edgeclip.errors import DeviceFileError
from edgeclip.manifest import Compute, Name, PositiveInt, Precision, Struct, Target

FORMAT_VERSION = 1
VARIABLE = "EDGECLIP_TUNED"
"""Names another folder; `off` turns device files off."""
OFF = "off"
MAX_BYTES = 1 << 16
REMOVE = "`edgeclip tune BUNDLE --forget` removes it"
Threads = Annotated[int, Meta(ge=1, le=1 << 12)]


class Machine(Struct, frozen=True):
    """What decides which artifact is best. Where any of it differs, the file says nothing."""

    cpu: str
    cpus: PositiveInt
    """That a process may use."""
    accelerator: str
    """With its driver; "" where the engine computes on the CPU."""
    engine: Name
    engine_version: str


class Loss(Struct, frozen=True):
    """What the artifact loses of the bundle's fp32, in percentage points."""

    basis: Name
    """How that is known."""
    drop_pt: float | None
    """None where no data was measured."""
    bound_pt: float
    """One-sided 95 % bound."""
    budget_pt: Annotated[float, Meta(ge=0, le=100)]
    """What was allowed."""


class Measured(Struct, frozen=True):
    """How fast it was. Medians."""

    image_ms: float
    """One image, ready to be encoded."""
    text_ms: float | None
    """None where there is no text tower."""
    images_per_s: float
    """At the file's batch."""
    load_ms: float
    peak_rss_mb: float
    size_bytes: int


class DeviceFile(Struct, frozen=True):
    """The root of the file."""

    format_version: int
    edgeclip: Name
    """The version that wrote it."""
    created: Name
    """As `2026-01-31T12:00:00Z`."""
    bundle: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
    machine: Machine
    backend: Name
    target: Target
    precision: Precision
    device: Name
    compute: Compute
    threads: Threads
    batch: PositiveInt
    """Images per run of the engine."""
    goal: Name
    rule: Name
    """What decided."""
    loss: Loss
    measured: Measured


class _Version(msgspec.Struct):
    format_version: int


def machine(backend: str) -> Machine:
    """This one, for a backend. Imports no engine."""
    return Machine(
        cpu=cpu_model(),
        cpus=available_cpus(),
        accelerator=backends.accelerator(backend),
        engine=backend,
        engine_version=backends.version(backend),
    )


def folder() -> Path | None:
    """Where device files lie; None where they are turned off, or there is no home directory."""
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == OFF else Path(named)
    try:
        return _settings() / "edgeclip" / "tuned"
    except RuntimeError:  # no home directory
        return None


def path_of(digest: str) -> Path | None:
    """The file of a bundle, `sha256:…`, whether or not it is there."""
    place = folder()
    return place / f"{digest.removeprefix('sha256:')}.json" if place else None


def encode(file: DeviceFile) -> bytes:
    """Serialise; the same file gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"


def read(path: Path) -> DeviceFile | None:
    """The file, or None where there is none.

    Raises:
        DeviceFileError: it cannot be read, is damaged, or another version of edgeclip wrote it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DeviceFileError(f"{path}: cannot be read: {exc.strerror}", hint=_remedy()) from exc
    if len(data) > MAX_BYTES:
        raise DeviceFileError(f"{path}: more than {MAX_BYTES} bytes, which no device file has", hint=_remedy())
    try:
        found = msgspec.json.decode(data, type=_Version).format_version
        if found == FORMAT_VERSION:
            return msgspec.json.decode(data, type=DeviceFile)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise DeviceFileError(f"{path}: the device file is damaged: {exc}", hint=_remedy()) from exc
    raise DeviceFileError(
        f"{path}: the device file has format {found}, this edgeclip reads {FORMAT_VERSION}", hint=_remedy()
    )


def forget(path: Path) -> bool:
    """Remove the file, be it damaged; whether there was one.

    Raises:
        DeviceFileError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise DeviceFileError(f"{path}: cannot be removed: {exc.strerror}") from exc
    return True


def _remedy() -> str:
    return f"{REMOVE}; {VARIABLE}={OFF} loads without it"


def _settings() -> Path:
    """
    Raises:
        RuntimeError: there is no home directory.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
