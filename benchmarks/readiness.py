"""Whether a device is set as its profile says, and has the means to measure with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edgeclip import backends
from edgeclip.benchmarks import energy
from edgeclip.benchmarks.conditions import Device
from edgeclip.board import Board
from edgeclip.manifest import Target
from edgeclip.profiles import Clock, Profile
from edgeclip.recognition import Check, compared

NEAR = 0.03
"""Share by which a clock may miss its value: kernels round to what their tables have."""
BUILT_IN = 0.8
"""Share of the built-in memory that the system manages at least; firmware and GPU keep the rest."""
UNITS = {"Hz": 1e-6, "kHz": 1e-3, "MHz": 1.0}
"""In MHz."""


def settings(profile: Profile, board: Board, device: Device) -> list[Check]:
    """What decides how fast the device may run. Only what the profile names."""
    return [*_size(profile, board), *_power(profile, board, device), *_clocks(profile, device.root)]


def means(profile: Profile, device: Device) -> list[Check]:
    """Engines, in the order of the profile's targets, and what tells of heat, throttling and energy."""
    return [*_engines(profile), *_sensors(profile, device.root), _energy(device.root)]


def clocks_mhz(profile: Profile, root: Path) -> dict[str, float]:
    """Those clocks that can be read, just now."""
    found = {clock.name: _mhz(clock, root) for clock in profile.clocks}
    return {name: mhz for name, mhz in found.items() if mhz is not None}


def _size(profile: Profile, board: Board) -> Iterator[Check]:
    if profile.cpus is not None:
        fix = "CPUs are off, or kept from this process; a power mode decides which are on"
        yield compared("CPUs", profile.cpus, board.cpus, ok=board.cpus == profile.cpus, fix=fix)
    if profile.memory_gb:
        wanted = " or ".join(f"{size:g} GB" for size in profile.memory_gb)
        if board.memory_gb is None:
            yield Check("memory", "not known", wanted, "")
        else:
            ok = any(BUILT_IN * size <= board.memory_gb <= size for size in profile.memory_gb)
            yield compared("memory", wanted, f"{board.memory_gb:.1f} GB", ok=ok, fix="another variant of the device")


def _power(profile: Profile, board: Board, device: Device) -> Iterator[Check]:
    if profile.power_mode:
        fix = profile.command_for("power mode")
        if board.power_mode == "unknown":
            yield Check("power mode", "not known", profile.power_mode, "nvpmodel does not answer", fix)
        else:
            ok = board.power_mode == profile.power_mode
            yield compared("power mode", profile.power_mode, board.power_mode, ok=ok, fix=fix)
    if profile.governor:
        fix, found = profile.command_for("governor"), device.governor()
        if found == "not known":
            yield Check("governor", "not known", profile.governor, "the system does not say", fix)
        else:
            yield compared("governor", profile.governor, found, ok=found == profile.governor, fix=fix)


def _clocks(profile: Profile, root: Path) -> Iterator[Check]:
    for clock in profile.clocks:
        found, what = _mhz(clock, root), f"{clock.name} clock"
        fix = profile.command_for("clocks")
        wanted = f"{clock.max_mhz:.0f} MHz" if clock.max_mhz else ""
        if found is None:
            yield Check(what, "not known", wanted, "cannot be read")
        else:
            ok = not clock.max_mhz or abs(found - clock.max_mhz) <= NEAR * clock.max_mhz
            yield compared(what, wanted, f"{found:.0f} MHz", ok=ok, fix=fix)


def _engines(profile: Profile) -> Iterator[Check]:
    """One that is missing matters unless a preferred one is there."""
    better = ""
    for target in profile.targets:
        name = _backend(target)
        lacking = backends.missing(name)
        what = f"target {target}"
        if not lacking and backends.ready(name):
            better = better or target
            yield Check(what, "ok", "", f"{name} runs here")
            continue
        found = f"{name} lacks {' and '.join(lacking)}" if lacking else f"{name} finds no device"
        if better:
            yield Check(what, "ok", "", f"{found}; not needed beside {better}")
        else:
            yield Check(what, "differs", "", found, backends.remedy(name) if lacking else "`edgeclip doctor` says why")


def _backend(target: Target) -> str:
    """The backend that a target is made for."""
    return next(name for name, row in backends.BACKENDS.items() if row.targets[0] == target)


def _sensors(profile: Profile, root: Path) -> Iterator[Check]:
    if profile.rails:
        present = energy.rails(root)
        for rail in profile.rails:
            yield _present(f"rail {rail}", rail in present, "no sensor of it")
    for pattern in profile.counters:
        found = len(list(root.glob(pattern.lstrip("/"))))
        yield _present(f"counter {pattern}", bool(found), "no such file", f"{found} there")
    for tool in profile.tools:
        yield _present(f"program {tool}", shutil.which(tool) is not None, "not installed")


def _present(what: str, present: bool, absent: str, found: str = "there") -> Check:
    return Check(what, "ok" if present else "not known", "", found if present else absent)


def _energy(root: Path) -> Check:
    with energy.counter(root) as counter:
        if counter is None:
            return Check("energy", "not known", "", energy.NONE, "a meter at the plug")
        return Check("energy", "ok", "", counter.name)


def _mhz(clock: Clock, root: Path) -> float | None:
    for pattern in clock.files:
        found = []
        for file in root.glob(pattern.lstrip("/")):
            with suppress(OSError, ValueError):
                found.append(float(file.read_text()) * UNITS[clock.unit])
        if found:
            return max(found)
    return None
