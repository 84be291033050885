"""How fast the device may run just now: power mode, clock, temperature, and whether something slows it down."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from edgeclip.benchmarks.record import Power
from edgeclip.powermode import power_mode

ROOT = Path("/")
NVML_REASONS = {
    0x4: "GPU at its power cap",
    0x8: "GPU slowed by hardware",
    0x20: "GPU slowed by software, hot",
    0x40: "GPU slowed by hardware, hot",
    0x80: "GPU slowed by the power brake",
}
"""Source: NVIDIA, NVML API reference, clocks event reasons."""
PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "at the soft temperature limit"}
"""Source: Raspberry Pi documentation, `vcgencmd get_throttled`: now; the same 16 bits further up since boot."""


@dataclass(frozen=True)
class Device:
    """Where the system's files are.

    Args:
        root: of the file system.
    """

    root: Path = field(default=ROOT)

    def power(self) -> Power:
        """Settings that decide how fast it may run."""
        return Power(mode=power_mode(), governor=self.governor(), battery=_on_battery(), celsius=self.celsius())

    def governor(self) -> str:
        """Linux's policy for clocks; "not known" where it does not say."""
        return _text(self.root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not known"

    def celsius(self) -> float | None:
        """The hottest zone."""
        found = [_number(path) for path in self.root.glob("sys/class/thermal/thermal_zone*/temp")]
        known = [value / 1000 for value in found if value is not None]
        return max(known, default=None)

    def clock_mhz(self) -> float | None:
        """The fastest CPU's."""
        found = [_number(path) for path in self.root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")]
        known = [value / 1000 for value in found if value is not None]
        return max(known, default=None)

    def signs(self) -> dict[str, int]:
        """What tells of throttling: counters of the kernel, and flags of the board or the GPU."""
        counted = list(self.root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"))
        found = {"CPU throttled, by the kernel's count": sum(int(_number(path) or 0) for path in counted)}
        return found | _pi_signs() | _nvml_signs()


def throttled(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[str, ...]:
    """Which signs have come or grown."""
    return tuple(sign for sign, value in after.items() if value > before.get(sign, 0))


def nvml_present() -> bool:
    """Whether NVIDIA's management library and its binding are here."""
    if find_spec("pynvml") is None:
        return False
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def pi_flags(text: str) -> dict[str, int]:
    """The answer of `vcgencmd get_throttled`, as `throttled=0x50005`."""
    value = int(text.partition("=")[2] or "0", 16)
    return {f"board {words}": int(bool(value >> bit & 1)) for bit, words in PI_BITS.items()}


def nvml_flags(reasons: int) -> dict[str, int]:
    """A GPU's clocks event reasons."""
    return {words: int(bool(reasons & bit)) for bit, words in NVML_REASONS.items()}


def _pi_signs() -> dict[str, int]:
    command = shutil.which("vcgencmd")
    if command is None:
        return {}
    done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=10, check=False)
    return pi_flags(done.stdout.strip()) if done.returncode == 0 else {}


def _nvml_signs() -> dict[str, int]:
    if not nvml_present():
        return {}
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return nvml_flags(int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))


def _on_battery() -> bool:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and not battery.power_plugged


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _number(path: Path) -> float | None:
    with suppress(ValueError):
        return float(_text(path))
    return None
