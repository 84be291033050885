"""Our own commands, run as users run them."""

from __future__ import annotations

import subprocess
import sys

from edgeclip.errors import ExportError


def run(module: str, *arguments: str) -> None:
    """`python -m MODULE ARGUMENTS --quiet`.

    Raises:
        ExportError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ExportError(f"{module} {arguments[0]} ended with {done.returncode}: {done.stdout.strip()[-500:]}")
