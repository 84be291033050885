"""Device profiles: how a device is told, how it is set for measuring, and how edgeclip runs on it.

One TOML file for each device and power mode, in `assets/profiles`, or a user's own. An unknown key is refused with the
nearest known one. What a profile leaves out is not known, and is not checked.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeclip.errors import UsageError
from edgeclip.manifest import Name, PositiveInt, Precision, Struct, Target
from edgeclip.strict import in_toml, read_toml, refuse_unknown

PROFILES = Path(__file__).parent / "assets" / "profiles"

System = Literal["Linux", "Darwin", "Windows"]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Files = Annotated[str, Meta(pattern="^/.", max_length=200)]
"""A path from the root, with `*` for any name."""


class Recognise(Struct, frozen=True):
    """How the device is told from others: all of it must be so."""

    system: System
    """As `uname -s` says."""
    machine: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """One of these, as `uname -m` says."""
    device_tree: tuple[Name, ...] = ()
    """One of these is part of the device tree's `model` or `compatible`."""
    features: tuple[Name, ...] = ()
    """All of these, among `cpuinfo.FLAGS`."""
    cpus: PositiveInt | None = None
    """Exactly so many that may be used; for devices that nothing else tells apart."""


class Clock(Struct, frozen=True):
    """A clock that can be read."""

    name: Name
    files: Annotated[tuple[Files, ...], Meta(min_length=1)]
    """The first that is there counts; of several files of one pattern, the fastest."""
    unit: Literal["Hz", "kHz", "MHz"]
    max_mhz: Positive | None = None
    """What the power mode lets it reach, and what it is to be fixed at for measuring."""


class Step(Struct, frozen=True):
    """What is to be done before measuring."""

    what: Name
    command: Name
    sets: Literal["power mode", "governor", "clocks"] | None = None


class Profile(Struct, frozen=True):
    """A device in one power mode."""

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$", max_length=60)]
    title: Name
    recognise: Recognise
    targets: Annotated[tuple[Target, ...], Meta(min_length=1)]
    """In order of preference."""
    precision: Precision | None = None
    """What to export first."""
    threads: PositiveInt | None = None
    """Of an engine on the CPU; None: as many as the process may use."""
    batches: Annotated[tuple[PositiveInt, ...], Meta(min_length=1)] = (8, 32)
    """Beside single images, for throughput."""
    power_mode: str = ""
    """As `nvpmodel -q` names it."""
    governor: str = ""
    """Linux's policy for clocks that measuring needs."""
    cpus: PositiveInt | None = None
    """That are on in this power mode."""
    memory_gb: tuple[Positive, ...] = ()
    """One of these, as sold: GiB."""
    clocks: tuple[Clock, ...] = ()
    rails: tuple[Name, ...] = ()
    """Labels of power rails whose sensors, INA3221, are read."""
    counters: tuple[Files, ...] = ()
    """Files of temperatures and of throttling that are read."""
    tools: tuple[Name, ...] = ()
    """Programs that say more."""
    prepare: tuple[Step, ...] = ()
    measured_by_us: bool = False
    """Whether edgeclip's makers have run the device; otherwise the profile is from documents alone."""

    def command_for(self, setting: str) -> str:
        """What to type to set it; "" where the profile does not say."""
        return next((step.command for step in self.prepare if step.sets == setting), "")


def names() -> list[str]:
    """Of the profiles that edgeclip brings."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


@cache
def shipped() -> tuple[Profile, ...]:
    """The profiles that edgeclip brings, by name."""
    return tuple(load(name) for name in names())


def load(name: str) -> Profile:
    """A profile that edgeclip brings, or the file at a path that ends with `.toml`.

    Raises:
        UsageError: there is none; a key is unknown or missing, or its value of another type.
    """
    return _read(Path(name) if name.endswith(".toml") else _brought(name))


def _brought(name: str) -> Path:
    known = names()
    if name in known:
        return PROFILES / f"{name}.toml"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    first = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)};"
    raise UsageError(f"no profile {name!r}", hint=f"{first} or the path of a .toml file")


def _read(file: Path) -> Profile:
    tables = read_toml(file)
    refuse_unknown(tables, Profile, "", file.name)
    try:
        return msgspec.convert(tables, Profile)
    except (msgspec.ValidationError, ValueError) as exc:
        raise UsageError(f"{file.name}: {in_toml(str(exc))}") from exc
