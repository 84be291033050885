"""Facts about this machine, as far as they decide how fast a model runs. Asks; never changes anything."""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

from edgeclip import cache
from edgeclip.cpuinfo import CPUINFO, field, instruction_sets
from edgeclip.cpus import available_cpus


def facts() -> dict[str, str]:
    """What `edgeclip doctor` shows of the machine."""
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": cpu_model(),
        "instruction sets": ", ".join(instruction_sets()) or "not known",
        "usable cpus": str(available_cpus()),
        "python": f"{platform.python_version()} ({sys.executable})",
        "cache": cache_state(),
    }


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name."""
    names = ("model name", "Model", "Hardware")
    found = next((value for key in names if (value := field(cpuinfo, key))), "")
    return found or _apple_cpu() or platform.processor() or "not known"


def cache_state() -> str:
    """Where the cache is and what it holds, or why there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory = cache.directory()
    if directory is None:
        return str(caught[-1].message) if caught else "none"
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return f"{directory}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"


def version_of(distribution: str) -> str | None:
    """The installed version; imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _apple_cpu() -> str:
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
