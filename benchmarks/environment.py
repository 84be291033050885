"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.cli import machine
from edgeclip.cpuinfo import instruction_sets
from edgeclip.cpus import available_cpus

PACKAGES = (
    *("edgeclip", "numpy", "pillow", "onnxruntime", "openvino", "tokenizers", "msgspec"),
    *("tensorrt", "tensorrt-rtx", "coremltools", "torch", "transformers", "safetensors", "scikit-learn"),
)
VARIABLES = ("OPENBLAS_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "OV_", "ORT_", "MALLOC_", "LD_PRELOAD")
"""Prefixes of the variables that change how fast numeric libraries are."""


def describe(threads: int) -> dict[str, Any]:
    """CPU, memory, system, packages and settings. Names neither the host nor any path.

    Args:
        threads: of both sides' engines.
    """
    return {
        "cpu": {
            "model": machine.cpu_model(),
            "isa": instruction_sets(),
            "cores": os.cpu_count(),
            "usable": available_cpus(),
        },
        "memory_mb": memory_mb(),
        "os": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: machine.version_of(name) for name in PACKAGES},
        "threads": {"edgeclip": threads, "transformers": threads},
        "numpy_blas": _blas(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "load_average": round(load(), 2),
    }


def memory_mb() -> int:
    """Physical memory."""
    import psutil

    return int(psutil.virtual_memory().total // 1_000_000)


def free_mb() -> float:
    """Memory that processes may take without any being moved to a disk."""
    import psutil

    return float(psutil.virtual_memory().available / 1e6)


def resident_mb() -> float:
    """Memory that this process has in RAM."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def peak_resident_mb() -> float:
    """The most that this process ever had.

    The kernel's own counter of it may be the parent's, whose memory a child shares until it executes; Linux keeps a
    second one that is not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)
    try:
        import resource
    except ImportError:  # Windows
        return resident_mb()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def load() -> float:
    """Processes that wanted a CPU, on average over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def stolen_s() -> float:
    """CPU seconds since boot that the hypervisor gave to others; 0 where the system does not tell."""
    import psutil

    return float(getattr(psutil.cpu_times(), "steal", 0.0))


class Others:
    """How much CPU the rest of the machine takes while we measure: ours and our children's is left out.

    A child that ends without being waited for would count as another; all of ours are waited for.
    """

    def __init__(self) -> None:
        self._busy, self._ours, self._clock = _busy_s(), _ours_s(), time.monotonic()

    def share(self) -> float:
        """CPUs' worth, since this object was made; 0.1 is a tenth of one CPU."""
        others = (_busy_s() - self._busy) - (_ours_s() - self._ours)
        return max(0.0, others / max(1e-3, time.monotonic() - self._clock))


def wait_for_quiet(share: float, patience_s: float) -> bool:
    """Wait until the rest of the machine takes less than `share` CPUs for a second; False where it never did."""
    deadline = time.monotonic() + patience_s
    while True:
        others = Others()
        time.sleep(1.0)
        if others.share() < share:
            return True
        if time.monotonic() > deadline:
            return False


def _busy_s() -> float:
    """CPU seconds since boot that anything ran."""
    import psutil

    times = psutil.cpu_times()._asdict()
    # A guest's time is counted under user already.
    return float(sum(v for k, v in times.items() if k not in ("idle", "iowait", "guest", "guest_nice", "steal")))


def _ours_s() -> float:
    """CPU seconds of this process, of the children that have ended, and of those that run."""
    import psutil

    times = os.times()
    found = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            each = child.cpu_times()
            found += each.user + each.system
    return found


def _blas() -> str:
    """The library behind NumPy's matrix products."""
    found = np.show_config(mode="dicts") or {}
    blas = found.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'not known')} {blas.get('version', '')}".strip()
