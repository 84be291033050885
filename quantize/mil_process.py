"""Working with coremltools in a child process, so that a crash or a hang of it is an error, not our end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeclip.errors import ExportError, TargetUnavailableError

TIME_LIMIT_S = 3600
OPTIONS = "options.json"
RESULT = "result"
"""The folder that the child puts packages into."""


def run(module: str, folder: Path, options: dict[str, Any]) -> dict[str, bytes]:
    """Let a module of ours, started as a program with the folder as its argument, make a package.

    Returns:
        The files in `RESULT`, by name.

    Raises:
        TargetUnavailableError: coremltools is not installed.
        ExportError: the child failed, crashed or took longer than an hour.
    """
    (folder / OPTIONS).write_text(json.dumps(options), "utf-8")
    (folder / RESULT).mkdir()
    command = [sys.executable, "-m", module, str(folder)]
    quiet = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}  # sets in the order of the last run
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False, env=quiet)
    except subprocess.TimeoutExpired as exc:
        raise ExportError(f"coremltools: took longer than {TIME_LIMIT_S} s") from exc
    if done.returncode:
        raise _failure(done)
    result = folder / RESULT
    return {str(p.relative_to(result)): p.read_bytes() for p in sorted(result.rglob("*")) if p.is_file()}


def _failure(done: subprocess.CompletedProcess[str]) -> ExportError | TargetUnavailableError:
    lines = done.stderr.strip().splitlines() or ["no message"]
    if lines[-1] == "ModuleNotFoundError: No module named 'coremltools'":
        return TargetUnavailableError(
            "target coreml: coremltools is not installed", hint="pip install 'edgeclip[coreml]'"
        )
    how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed: {lines[-1]}"
    return ExportError(f"coremltools: {how}")
