"""Making artifacts: what is asked for, and what became of it."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec

from edgeclip import backends
from edgeclip.backends.base import Files, Options, Session
from edgeclip.bundle import Bundle
from edgeclip.cpus import available_cpus
from edgeclip.errors import EdgeClipError, ExportExistsError, ParityError
from edgeclip.golden import Golden
from edgeclip.manifest import (
    Artifact,
    Axis,
    Parity,
    Precision,
    Preprocess,
    Profile,
    Quantization,
    Target,
    TensorSpec,
    Tower,
)
from edgeclip.parity import Agreement, bounds_for, measure

JUDGES: dict[Target, str] = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "coreml": "coreml-reference",
    "tensorrt": "onnxruntime",
}
"""Target → the backend that its artifacts are measured on."""
INPUT: dict[Tower, str] = {"image": "pixels", "text": "ids"}
OUTPUT = "embeddings"
MAX_BATCH = 32
"""Rows that an engine takes at once, unless somebody says otherwise."""
USUAL_BATCH = 8
"""Rows that an engine is tuned for."""


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    tower: Tower
    target: Target
    precision: Precision
    max_batch: int = MAX_BATCH
    """Of a TensorRT engine; what other targets make takes any batch."""
    deployment: str | None = None
    """Of a Core ML package: the oldest system that runs it."""

    def __str__(self) -> str:
        return f"{self.target} {self.precision} {self.tower}"

    @property
    def folder(self) -> str:
        """Where its files lie in a bundle."""
        return f"{self.target}-{self.precision}"


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    artifact: Artifact | None = None
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    agreement: Agreement | None = None
    failures: list[str] = field(default_factory=list)
    """Bounds that were broken, or why there is no artifact."""
    error: EdgeClipError | None = None

    @property
    def status(self) -> str:
        """`ok`, `below gate` (built, but not close enough to the reference) or `failed`."""
        return "failed" if self.artifact is None else "below gate" if self.failures else "ok"

    @property
    def size_bytes(self) -> int:
        return sum(len(data) for data in self.files.values())


def jobs_of(
    targets: Iterable[Target],
    precisions: Iterable[Precision],
    towers: Iterable[Tower],
    max_batch: int = MAX_BATCH,
) -> list[Job]:
    """Targets × precisions × towers, each once."""
    product = itertools.product(targets, precisions, towers)
    return list(dict.fromkeys(Job(tower, target, precision, max_batch) for target, precision, tower in product))


def refuse_existing(bundle: Bundle, jobs: Iterable[Job], output: Path) -> None:
    """Before anything slow begins.

    Raises:
        ExportExistsError: the bundle has one of these artifacts.
    """
    for job in jobs:
        if bundle.artifacts(tower=job.tower, target=job.target, precision=job.precision):
            raise ExportExistsError(f"{output}: has {job} already", hint="--force replaces it")


def publishable(outcomes: Sequence[Outcome], *, keep_going: bool, allow_below_gate: bool) -> list[Outcome]:
    """Those that go into the bundle: all or none, unless the options say otherwise."""
    good = [o for o in outcomes if o.status == "ok" or (o.status == "below gate" and allow_below_gate)]
    return good if keep_going or len(good) == len(outcomes) else []


def raise_if_failed(outcomes: Sequence[Outcome], *, allow_below_gate: bool = False) -> None:
    """
    Raises:
        ParityError: an artifact is below its gate.
        EdgeClipError: what kept an artifact from being made.
    """
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    broken = [o for o in outcomes if o.failures]
    if broken and not allow_below_gate:
        raise ParityError(
            "; ".join(f"{o.job}: {', '.join(o.failures)}" for o in broken),
            hint="not published; --allow-below-gate publishes it all the same and records it",
        )


def draft(
    job: Job,
    names: Iterable[str],
    preprocess: Preprocess,
    embed_dim: int,
    context_length: int | None,
    *,
    opset: int | None,
    libraries: Iterable[str],
    quantization: Quantization | None = None,
) -> Artifact:
    """The manifest's entry of an artifact that was not measured yet.

    Args:
        names: of its files within the bundle.
        context_length: the most token ids of a row; None where the model has no text tower.
        libraries: distributions that made it, whose versions are noted.
    """
    size = preprocess.size
    shape: tuple[str | int, ...] = ("batch", size, size, 3) if job.tower == "image" else ("batch", "context")
    files = tuple(sorted(names))
    return Artifact(
        tower=job.tower,
        target=job.target,
        precision=job.precision,
        file=next(name for name in files if name.endswith((".onnx", ".xml", ".mlpackage/Manifest.json"))),
        files=files,
        input=TensorSpec(name=INPUT[job.tower], dtype="uint8" if job.tower == "image" else "int32", shape=shape),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=("batch", embed_dim)),
        parity=Parity(n=1, cosine_mean=0, cosine_min=0, max_abs=0, top1_agreement=0, passed=False, backend="not run"),
        opset=None if job.target == "coreml" else opset,
        tools={"python": platform.python_version()} | {name: version(name) for name in libraries},
        quantization=quantization,
        profile=_profile(job, context_length) if job.target == "tensorrt" else None,
        deployment=job.deployment,
    )


def _profile(job: Job, context_length: int | None) -> Profile:
    """Any batch up to the job's, and any number of token ids; tuned for some rows of whole texts."""
    batch = Axis(min=1, opt=min(USUAL_BATCH, job.max_batch), max=job.max_batch)
    if job.tower == "image":
        return Profile(batch=batch)
    assert context_length is not None
    return Profile(batch=batch, context=Axis(min=1, opt=context_length, max=context_length))


def open_session(artifact: Artifact, files: Mapping[str, bytes]) -> Session:
    """Load an artifact into the backend that judges its target."""
    contents: Files = dict(files)
    return backends.get(JUDGES[artifact.target]).open(artifact, contents, Options(threads=available_cpus()))


def judge(
    job: Job, artifact: Artifact, files: dict[str, bytes], golden: Golden, failures: Sequence[str] = ()
) -> Outcome:
    """Run an artifact on the golden inputs and hold it against the bounds of its precision.

    Args:
        files: by their names within the bundle.
        failures: what it has failed already.
    """
    session = open_session(artifact, files)
    inputs, reference = (
        (golden.pixels, golden.image_embeddings) if job.tower == "image" else (golden.ids, golden.text_embeddings)
    )
    try:
        agreement = measure(session.run(inputs), reference)
    finally:
        session.close()
    broken = [*failures, *agreement.failures(bounds_for(job.precision))]
    parity = Parity(
        n=agreement.n,
        cosine_mean=agreement.cosine_mean,
        cosine_min=agreement.cosine_min,
        max_abs=agreement.max_abs,
        top1_agreement=agreement.top1_agreement,
        passed=not broken,
        backend=f"{session.engine.name} {session.engine.version}",
    )
    return Outcome(job, msgspec.structs.replace(artifact, parity=parity), files, agreement, broken)
