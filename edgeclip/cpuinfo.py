"""What Linux says of the CPU in `/proc/cpuinfo`."""

from __future__ import annotations

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
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def instruction_sets(cpuinfo: Path = CPUINFO) -> list[str]:
    """Those of `FLAGS` that the CPU has."""
    found = set((field(cpuinfo, "flags") or field(cpuinfo, "Features")).split())
    return [flag for flag in FLAGS if flag in found]
