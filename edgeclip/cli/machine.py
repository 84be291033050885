"""Facts about this machine, as far as they decide how fast a model runs. Asks; never changes anything."""

from __future__ import annotations

import platform
import sys
import warnings
from importlib import metadata

from edgeclip import cache
from edgeclip.cpuinfo import cpu_model as cpu_model
from edgeclip.cpuinfo import instruction_sets
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
