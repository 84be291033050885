"""This machine, as far as profiles tell machines apart."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgeclip.cpuinfo import field, instruction_sets
from edgeclip.cpus import available_cpus
from edgeclip.powermode import power_mode

ROOT = Path("/")


@dataclass(frozen=True)
class Board:
    """What it is, and how it is set."""

    system: str
    """As `uname -s` says."""
    machine: str
    """As `uname -m` says."""
    device_tree: tuple[str, ...]
    """Its `model` and `compatible` strings; none where there is no device tree."""
    features: tuple[str, ...]
    """Instruction sets, of `cpuinfo.FLAGS`."""
    cpus: int
    """That are on and that this process may use."""
    memory_gb: float | None
    """GiB that the system manages, a little less than is built in; None where it does not tell."""
    power_mode: str
    """As `nvpmodel -q` names it; `unknown` elsewhere."""

    def __str__(self) -> str:
        """In words, for messages."""
        model = f", {self.device_tree[0]}" if self.device_tree else ""
        mode = f", power mode {self.power_mode}" if self.power_mode != "unknown" else ""
        return f"{self.system} on {self.machine}{model}, {self.cpus} CPUs{mode}"


def read(root: Path | None = None) -> Board:
    """This machine, now.

    Args:
        root: of the file system that the kernel's files are read from; None is `ROOT`.
    """
    root = root or ROOT
    return Board(
        system=platform.system(),
        machine=platform.machine(),
        device_tree=_device_tree(root / "proc/device-tree"),
        features=tuple(instruction_sets(root / "proc/cpuinfo")),
        cpus=min(_online(root / "sys/devices/system/cpu/online"), available_cpus(root / "sys/fs/cgroup")),
        memory_gb=_memory_gb(root / "proc/meminfo"),
        power_mode=power_mode(),
    )


def _device_tree(folder: Path) -> tuple[str, ...]:
    """Strings that end with NUL."""
    found = []
    for name in ("model", "compatible"):
        file = folder / name
        if file.is_file():
            found += file.read_bytes().decode(errors="replace").split("\0")
    return tuple(one.strip() for one in found if one.strip())


def _online(file: Path) -> int:
    """CPUs of a list such as `0-3,6`; all of the system's where there is none."""
    try:
        spans = [span.split("-") for span in file.read_text().strip().split(",")]
        return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
    except (OSError, ValueError):
        return os.cpu_count() or 1


def _memory_gb(meminfo: Path) -> float | None:
    total = field(meminfo, "MemTotal").removesuffix(" kB")
    if total.isdigit():
        return int(total) / (1 << 20)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return None
