"""Embedding in a child process, so that an engine that crashes is one result that is missing, not the end of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeclip import child
from edgeclip.benchmarks.embedded_set import EmbeddedSet
from edgeclip.benchmarks.embedding_child import ANSWER, JOB, Answer, EngineSpec, Fault, Job, Subject
from edgeclip.benchmarks.testdata import DataSpec

CHILD = child.command("edgeclip.benchmarks.embedding_child")
CRASHED = 5
"""Exit code: the engine is not available."""


_HINT = "what it had embedded is kept in the cache; `edgeclip verify` tells whether the engine runs the artifact"


@dataclass(frozen=True)
class Embedded:
    """What a child has left."""

    answer: Answer
    sets: Sequence[DataSpec]
    folder: Path

    @property
    def subject(self) -> Subject | None:
        """What ran; None where nothing did."""
        return self.answer.subject

    def __getitem__(self, i: int) -> EmbeddedSet | Fault:
        """The i-th set, read from disk, or why it is missing."""
        reason = self.answer.fault or self.answer.faults.get(i)
        return reason or EmbeddedSet.load(self.folder / f"{i}.npz")


@contextmanager
def embedded(
    engine: EngineSpec,
    sets: Sequence[DataSpec],
    *,
    cache: bool = True,
    quiet: bool = False,
    command: Sequence[str] = CHILD,
) -> Iterator[Embedded]:
    """Embed data sets with one engine; what was embedded is on disk while the block lasts.

    Args:
        cache: use, and add to, the embeddings that are kept in the user's cache.
        quiet: no progress.
        command: the child; its arguments are the search path for modules, and the folder.
    """
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as name:
        folder = Path(name)
        job = Job(engine=engine, sets=tuple(sets), parent=os.getpid(), cache=cache, quiet=quiet)
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        with subprocess.Popen([*command, json.dumps(sys.path), name], stdin=subprocess.DEVNULL) as process:
            try:
                code = process.wait()
            finally:
                process.kill()
        yield Embedded(_answer(folder, code), sets, folder)


def _answer(folder: Path, code: int) -> Answer:
    file = folder / ANSWER
    if code == 0 and file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=Answer)
    message = f"the engine's process {child.death(code, 'an answer')}"
    return Answer(fault=Fault(type="TargetLoadError", message=message, hint=_HINT, exit_code=CRASHED))
