"""Workers from outside: starting them, asking them, and saying what became of those that died."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip import errors
from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.timing import Warmth
from edgeclip.errors import EdgeClipError, TargetLoadError
from edgeclip.manifest import Tower

COMMAND = ("-m", "edgeclip.benchmarks.worker")
PATIENCE_S = 600.0
"""For an answer: a TensorRT engine may have to be built."""
_LAST_WORDS = 300
"""Characters of what a process wrote before it died."""


@dataclass(frozen=True)
class Loaded:
    """What loading took, and what was loaded."""

    load_ms: float
    first_ms: float
    base_rss_mb: float
    vram_mb: float | None
    engine: str
    device: str
    compute: str


class Worker:
    """One process. Every method raises what the process reports, or TargetLoadError where it died.

    Args:
        command: arguments of the interpreter that make it one.
    """

    def __init__(self, row: Row, command: Sequence[str] = COMMAND) -> None:
        self.row = row
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, *command, row.label],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, images: Sequence[Path], threads: int) -> Loaded:
        """Load its artifacts, and embed a first image and a first text."""
        row = self.row
        options = {"backend": row.backend, "precision": row.precision, "tower": row.tower, "threads": threads}
        found = self._ask(
            "load",
            bundle=str(row.path),
            images=list(map(str, images)),
            reference=row.reference,
            **options | row.options,
        )
        return Loaded(**found)

    def warm(self, stage: str, batch: int, *, least_s: float, window_s: float, most_s: float) -> Warmth:
        """Call a stage until it takes equally long each time."""
        budget = {"least_s": least_s, "window_s": window_s, "most_s": most_s}
        return Warmth(**self._ask("warm", stage=stage, batch=batch, **budget))

    def turn(self, stage: str, batch: int, *, discard: int, count: int) -> list[float]:
        """Seconds of `count` calls, after some that do not count."""
        found: list[float] = self._ask("turn", stage=stage, batch=batch, discard=discard, count=count)
        return found

    def sustain(self, stage: str, batch: int, seconds: float) -> list[float]:
        """Seconds of calls without pauses."""
        found: list[float] = self._ask("sustain", stage=stage, batch=batch, seconds=seconds)
        return found

    def peak_rss_mb(self) -> float:
        """The most that it had in RAM."""
        return float(self._ask("memory"))

    def parity(self) -> dict[str, Any]:
        """The golden vectors, as `record.Parity`."""
        found: dict[str, Any] = self._ask("parity")
        return found

    def embed(self, tower: Tower, inputs: Path, start: int, stop: int, scratch: Path) -> Embeddings:
        """Embeddings of some rows of a `.npy` of pixels or token ids, float32 [stop - start, D].

        Args:
            scratch: a file that may be written.
        """
        self._ask("embed", tower=tower, inputs=str(inputs), start=start, stop=stop, outputs=str(scratch))
        return np.asarray(np.load(scratch), np.float32)

    def close(self) -> None:
        """End it. A second call does nothing."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def _ask(self, do: str, **arguments: Any) -> Any:
        request = msgspec.json.encode({"do": do, **arguments}) + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError as exc:
            raise self._death(do) from exc
        try:
            line = self._replies.get(timeout=PATIENCE_S)
        except queue.Empty:
            self._process.kill()
            raise TargetLoadError(f"no answer in {PATIENCE_S:g} s ({do}): the process was ended") from None
        if not line:
            raise self._death(do)
        reply: dict[str, Any] = msgspec.json.decode(line)
        if "error" in reply:
            kind = getattr(errors, reply["error"], EdgeClipError)
            raise kind(reply["message"], hint=reply["hint"])
        return reply["found"]

    def _listen(self) -> None:
        """Pass on its answers; an empty one when there will be no more."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._process.stdout.close()
        self._replies.put(b"")

    def _death(self, doing: str) -> TargetLoadError:
        code = self._process.wait()
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with {code}"
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - _LAST_WORDS))
        said = " ".join(self._errors.read().decode(errors="replace").split())
        return TargetLoadError(f"its process {how} ({doing})" + (f": {said}" if said else ""))


@contextlib.contextmanager
def closing(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """End all workers when the block ends."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _signal(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
