"""Child processes of ours: how one is started, and how it ended."""

from __future__ import annotations

import signal
import sys


def command(module: str) -> tuple[str, ...]:
    """Starts `main` of one of our modules; the arguments to add are `json.dumps(sys.path)` and `main`'s own.

    Isolated, so that no file in the current directory is imported; it sees the modules that we see.
    """
    start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(sys.argv[2])"
    return sys.executable, "-I", "-c", start


def death(code: int, wanting: str) -> str:
    """How a process ended that gave nothing: `crashed (SIGSEGV)`, or `ended without WANTING (exit code 1)`."""
    if code >= 0:
        return f"ended without {wanting} (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"
