"""Working with coremltools in child processes, so that a crash or a hang of it is an error, not our end.

Importing it takes seconds, so within `staying` a child does one job after another. The same job gives the same bytes
whether it is a child's first or not.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeclip.errors import ExportError, TargetUnavailableError

TIME_LIMIT_S = 3600.0
"""Of one job."""
OPTIONS = "options.json"
RESULT = "result"
"""The folder that the child puts packages into."""
_waiting: dict[str, _Child] | None = None
"""Children without a job, by module; None where none shall stay."""


@contextmanager
def staying() -> Iterator[None]:
    """Let children wait for the next job until the outermost of such blocks ends. Not for several threads at once."""
    global _waiting
    if _waiting is not None:
        yield
        return
    _waiting = {}
    try:
        yield
    finally:
        children, _waiting = _waiting, None
        for child in children.values():
            child.end()


def run(module: str, folder: Path, options: dict[str, Any]) -> dict[str, bytes]:
    """Let a module of ours, which `serve`s as a program, make a package of what lies in the folder.

    Returns:
        The files in `RESULT`, by name.

    Raises:
        TargetUnavailableError: coremltools is not installed.
        ExportError: the child failed, crashed or took longer than an hour.
    """
    (folder / OPTIONS).write_text(json.dumps(options), "utf-8")
    (folder / RESULT).mkdir()
    child = (_waiting or {}).pop(module, None) or _Child(module)
    try:
        child.work(folder)
    except BaseException:
        child.end()
        raise
    if _waiting is None:
        child.end()
    else:
        _waiting[module] = child
    result = folder / RESULT
    return {str(p.relative_to(result)): p.read_bytes() for p in sorted(result.rglob("*")) if p.is_file()}


def serve(main: Callable[[Path], None]) -> None:
    """The child's end: do the job in each folder that is named on standard input; exceptions end it."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no reply
    for line in sys.stdin:
        folder = json.loads(line)
        tempfile.tempdir = folder  # coremltools leaves packages lying about until it ends
        main(Path(folder))
        gc.collect()  # programs refer to themselves, and are as large as the model
        print(folder, file=replies, flush=True)


class _Child:
    """A process that makes packages, one at a time."""

    def __init__(self, module: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        quiet = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}  # sets in the order of the last run
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=quiet,
        )

    def work(self, folder: Path) -> None:
        """Do one job. After an error, the child is of no use any more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(TIME_LIMIT_S, stop)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(str(folder)) + "\n")
            self._process.stdin.flush()
            done = self._process.stdout.readline()
        except BrokenPipeError:
            done = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise ExportError(f"coremltools: took longer than {TIME_LIMIT_S:g} s")
        if not done:
            raise self._failure()
        self._said.seek(0)
        self._said.truncate()  # warnings, which are not why a later job fails

    def end(self) -> None:
        """Stop it, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _failure(self) -> ExportError | TargetUnavailableError:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
        if lines[-1] == "ModuleNotFoundError: No module named 'coremltools'":
            return TargetUnavailableError(
                "target coreml: coremltools is not installed", hint="pip install 'edgeclip[coreml]'"
            )
        how = f"was killed by signal {-code}" if code < 0 else f"failed: {lines[-1]}"
        return ExportError(f"coremltools: {how}")
