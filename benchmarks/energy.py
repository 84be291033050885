"""Counters of energy: RAPL of Intel's and AMD's CPUs, NVIDIA's NVML, and a Jetson's rails, integrated here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from edgeclip.benchmarks import conditions
from edgeclip.benchmarks.conditions import ROOT

NONE = "no counter"
TOTAL_RAIL = "VDD_IN"
"""A Jetson's rail that feeds all others."""
RAILS_HZ = 20


class Counter(Protocol):
    """Energy since some time in the past."""

    name: str

    def joules(self) -> float: ...

    def close(self) -> None: ...


class Rapl:
    """Packages of the CPU, as the kernel's powercap counts them; they may be read by root alone."""

    name = "RAPL, CPU packages"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in zones]
        self._last = [int(path.read_text()) for path, _ in self._zones]
        self._joules = 0.0

    def joules(self) -> float:
        """Each counter begins anew at its range; it must be read more often than that."""
        for i, (path, span) in enumerate(self._zones):
            value = int(path.read_text())
            self._joules += (value - self._last[i]) % (span + 1) / 1e6
            self._last[i] = value
        return self._joules

    def close(self) -> None:
        """Nothing is held."""


class Nvml:
    """The first GPU, since its driver was loaded."""

    name = "NVML, GPU"

    def __init__(self) -> None:
        import pynvml

        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.joules()

    def joules(self) -> float:
        import pynvml

        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def close(self) -> None:
        """Nothing is held."""


class Rails:
    """Voltage times current of a Jetson's rails, read by a thread `RAILS_HZ` times a second.

    Args:
        rails: files of millivolts and of milliamperes.
    """

    def __init__(self, name: str, rails: Sequence[tuple[Path, Path]]) -> None:
        self.name = name
        self._rails, self._joules, self._ended = rails, 0.0, threading.Event()
        self.watts()
        self._thread = threading.Thread(target=self._integrate, daemon=True)
        self._thread.start()

    def watts(self) -> float:
        """Just now."""
        return sum(int(volts.read_text()) * int(amperes.read_text()) for volts, amperes in self._rails) / 1e6

    def joules(self) -> float:
        return self._joules

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _integrate(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(1 / RAILS_HZ):
            now = time.monotonic()
            self._joules += self.watts() * (now - before)
            before = now


@contextmanager
def counter(root: Path = ROOT) -> Iterator[Counter | None]:
    """The counter of what computes: a Jetson's rails, the GPU, or the CPU; None where none can be read."""
    found = _first(root)
    try:
        yield found
    finally:
        if found is not None:
            found.close()


def _first(root: Path) -> Counter | None:
    found = rails(root)
    zones = [zone for zone in sorted(root.glob("sys/class/powercap/*-rapl:*")) if zone.name.count(":") == 1]
    with suppress(OSError, ValueError):
        if TOTAL_RAIL in found:
            return Rails(f"rail {TOTAL_RAIL}", [found[TOTAL_RAIL]])
        if found:
            return Rails(f"rails {', '.join(sorted(found))}", list(found.values()))
    if conditions.nvml_present():
        import pynvml

        with suppress(pynvml.NVMLError):
            return Nvml()
    with suppress(OSError, ValueError):
        return Rapl(zones) if zones else None
    return None


def rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Label -> files of millivolts and of milliamperes, of the sensors (INA3221) that a Jetson has."""
    found = {}
    for label in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        number = label.name.removeprefix("in").removesuffix("_label")
        pair = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if all(path.is_file() for path in pair):
            found[label.read_text().strip()] = pair
    return found
