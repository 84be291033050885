"""Which CPU this is, and how many this process may use."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs by affinity and by the container's quota, at least 1; not the host's count."""
    return max(1, min(_affinity(), _quota(cgroup)))


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name."""
    found = next((value for key in ("model name", "Model", "Hardware") if (value := cpu_field(key, cpuinfo))), "")
    return found or _apple_cpu() or platform.processor() or "not known"


def cpu_field(key: str, cpuinfo: Path = CPUINFO) -> str:
    """What Linux says of the first CPU under a key; "" where it says nothing."""
    try:
        with cpuinfo.open(errors="replace") as lines:  # of hundreds of CPUs, the first is enough
            pairs = (line.partition(":") for line in lines)
            return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
    except OSError:
        return ""


def _apple_cpu() -> str:
    if sys.platform != "darwin":
        return ""
    import subprocess  # Slow to import, and needed only here.

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> int:
    """CPUs that the cgroup (v2, then v1) grants, rounded up; unlimited counts as very many."""
    unlimited = 1 << 16
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return unlimited
    if quota in ("max", "-1"):
        return unlimited
    try:
        return max(1, math.ceil(int(quota) / int(period)))
    except (ValueError, ZeroDivisionError):
        return unlimited
