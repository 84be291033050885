"""The power mode that a device is set to, which decides how fast it is."""

from __future__ import annotations

import shutil
import subprocess


def power_mode() -> str:
    """The power mode of a Jetson, as `nvpmodel -q` names it; `unknown` elsewhere."""
    command = shutil.which("nvpmodel")
    if command is None:
        return "unknown"
    try:
        done = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    named = [line.partition(":")[2].strip() for line in done.stdout.splitlines() if "Power Mode" in line]
    return named[0] if named else "unknown"
