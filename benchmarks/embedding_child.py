"""The child process of `embedding_process`: loads one engine, embeds data sets, and writes them into a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeclip.benchmarks.embedded_set import embed
from edgeclip.benchmarks.embedding_cache import EmbeddingCache
from edgeclip.benchmarks.testdata import DataSpec, count
from edgeclip.cli import progress
from edgeclip.cli.failures import INTERRUPTED, describe
from edgeclip.cli.options import Engine
from edgeclip.cli.output import Output
from edgeclip.errors import EdgeClipError
from edgeclip.manifest import Compute, Precision, Target

ANSWER = "answer.json"
JOB = "job.json"


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a bundle."""

    bundle: str
    backend: str = "auto"
    precision: Precision | None = None
    device: str | None = None
    compute: Compute = "f32"
    threads: int | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is told."""

    engine: EngineSpec
    sets: tuple[DataSpec, ...]
    parent: int
    """Process that waits; without it, nobody needs the answer."""
    cache: bool = True
    quiet: bool = False


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no result."""

    type: str
    message: str
    hint: str = ""
    exit_code: int = 70


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The artifact that ran, and on what."""

    name: str
    bundle: str
    """Digest, `sha256:…`."""
    target: Target
    precision: Precision
    backend: str
    engine_version: str
    device: str
    compute: Compute

    @property
    def label(self) -> str:
        """As tables name it."""
        arithmetic = self.precision if self.compute == "f32" else f"{self.precision} in {self.compute}"
        return f"{self.name} {self.backend} {arithmetic}"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says when it is done. The embeddings of set i lie beside it in `i.npz`."""

    subject: Subject | None = None
    fault: Fault | None = None
    """Why the engine could not be loaded."""
    faults: dict[int, Fault] = {}
    """Of sets, by position."""
    computed: int = 0
    """Images that were embedded."""
    found: int = 0
    """Images whose embeddings were in the cache."""


def main(folder: str) -> None:
    """Carry out the job in a folder."""
    place = Path(folder)
    job = msgspec.json.decode((place / JOB).read_bytes(), type=Job)
    try:
        answer = _run(job, place)
    except KeyboardInterrupt:  # the parent gets it too, and says so
        sys.exit(INTERRUPTED)
    except Exception as exc:  # whatever an engine raises is an answer
        answer = Answer(fault=fault(exc))
    temp = place / f"{ANSWER}.tmp"
    temp.write_bytes(msgspec.json.encode(answer))
    temp.replace(place / ANSWER)


def fault(exc: BaseException) -> Fault:
    """An error in words."""
    said = describe(exc)
    return Fault(type=said.type, message=said.message, hint=said.hint, exit_code=said.exit_code)


def _run(job: Job, place: Path) -> Answer:
    asked = job.engine
    engine = Engine(asked.backend, asked.precision, asked.device, asked.compute, asked.threads)
    output = Output()
    output.quiet = job.quiet
    faults: dict[int, Fault] = {}
    with engine.load(Path(asked.bundle), None if any(spec.texts for spec in job.sets) else "image") as model:
        cache = EmbeddingCache(model, enabled=job.cache)
        info = model.info
        artifact = next(a for a in model.bundle.manifest.artifacts if a.file in info.artifacts.values())
        subject = Subject(
            name=info.name,
            bundle=info.bundle,
            target=artifact.target,
            precision=info.precision,
            backend=info.backend,
            engine_version=info.engine_version,
            device=info.device,
            compute=info.compute,
        )
        with progress.bar(output, subject.label, _total(job.sets)) as advance:

            def counted(amount: int) -> None:
                if os.getppid() != job.parent:
                    sys.exit("the process that asked is gone")
                advance(amount)

            for i, spec in enumerate(job.sets):
                try:
                    embed(model, spec, counted, cache).save(place / f"{i}.npz")
                except EdgeClipError as exc:
                    faults[i] = fault(exc)
    return Answer(subject=subject, faults=faults, computed=cache.computed, found=cache.found)


def _total(sets: Sequence[DataSpec]) -> int:
    """Images in all; a damaged set counts as none, and says so when it is read."""
    total = 0
    for spec in sets:
        try:
            total += count(spec)
        except EdgeClipError:
            continue
    return total
