"""Runs the real command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TIME_LIMIT_S = 120


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would colour or debug the output, with changes."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "EDGECLIP_DEBUG", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **changes}


def edgeclip(
    *arguments: str | Path, env: dict[str, str] | None = None, stdin: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """`edgeclip ARGUMENTS`."""
    return _run([sys.executable, "-m", "edgeclip", *map(str, arguments)], env, stdin, options)


def patched(code: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`edgeclip ARGUMENTS` after some Python code has changed the process."""
    script = f"import sys\n{code}\nfrom edgeclip.cli import main\nsys.exit(main(sys.argv[1:]))"
    return _run([sys.executable, "-c", script, *map(str, arguments)], env, "", {})


def without(*modules: str) -> str:
    """Code for `patched`: these modules are not installed."""
    return "\n".join(f"sys.modules[{module!r}] = None" for module in modules)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Standard output as the one JSON document that it must be."""
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def picture(path: Path, seed: int = 0) -> None:
    """Write an image of 90 x 70 pixels, in the format of the path's suffix."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    Image.fromarray(noise).resize((90, 70)).save(path)


def _run(
    command: list[str], env: dict[str, str] | None, stdin: str, options: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=env or environment(),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=TIME_LIMIT_S,
        check=False,
        **options,
    )
