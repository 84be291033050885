"""Which CPU this is: what Linux says of it in `/proc/cpuinfo`, or another system in its own way."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FLAGS = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Instruction sets that change the speed of matrix products, by Linux's names."""


def field(cpuinfo: Path, key: str) -> str:
    """The value of the first line with this key; "" where there is none."""
    try:
        with cpuinfo.open(errors="replace") as lines:  # of hundreds of CPUs, the first is enough
            pairs = (line.partition(":") for line in lines)
            return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
    except OSError:
        return ""


def instruction_sets(cpuinfo: Path = CPUINFO) -> list[str]:
    """Those of `FLAGS` that the CPU has."""
    found = set((field(cpuinfo, "flags") or field(cpuinfo, "Features")).split())
    return [flag for flag in FLAGS if flag in found]


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name."""
    names = ("model name", "Model", "Hardware")
    found = next((value for key in names if (value := field(cpuinfo, key))), "")
    return found or _apple_cpu() or platform.processor() or "not known"


def _apple_cpu() -> str:
    if sys.platform != "darwin":
        return ""
    import subprocess  # Slow to import, and needed only here.

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
