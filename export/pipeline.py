"""Export: source → graph → artifact → parity gate → bundle.

Everything is built and measured before the output is touched; the bundle is published once, whole.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from edgeclip import __version__, backends, publish
from edgeclip.backends.base import Files, Options
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.cpus import available_cpus
from edgeclip.errors import EdgeClipError, ExportExistsError, NonFiniteError, ParityError, UsageError
from edgeclip.export.golden import make_golden
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.source import Source
from edgeclip.export.to_onnx import DEFAULT_OPSET, INPUT, OUTPUT, to_onnx
from edgeclip.export.to_openvino import to_openvino
from edgeclip.golden import FILE as GOLDEN
from edgeclip.golden import Golden
from edgeclip.manifest import (
    FORMAT_VERSION,
    Artifact,
    Manifest,
    Parity,
    Precision,
    Target,
    TensorSpec,
    Tower,
)
from edgeclip.parity import Agreement, bounds_for, measure

TARGETS: dict[Target, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What can be exported, and the backend that its parity is measured on."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    tower: Tower
    target: Target
    precision: Precision

    def __str__(self) -> str:
        return f"{self.target} {self.precision} {self.tower}"


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


def plan(targets: Iterable[Target], precisions: Iterable[Precision], tower: Tower | None) -> list[Job]:
    """All jobs of a call: targets × precisions × towers.

    Raises:
        UsageError: a target or precision that cannot be exported.
    """
    jobs = [
        Job(t, target, precision)
        for target in dict.fromkeys(targets)
        for precision in dict.fromkeys(precisions)
        for t in ((tower,) if tower else ("image", "text"))
    ]
    for job in jobs:
        if job.target not in TARGETS:
            raise UsageError(f"target {job.target!r} cannot be exported", hint=f"one of: {', '.join(TARGETS)}")
        if job.precision not in PRECISIONS:
            raise UsageError(f"precision {job.precision!r} cannot be exported", hint=f"one of: {', '.join(PRECISIONS)}")
    return jobs


def export(
    source: Source,
    output: Path,
    jobs: Sequence[Job],
    *,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    keep_going: bool = False,
    allow_below_gate: bool = False,
    progress: Progress = lambda step: None,
) -> list[Outcome]:
    """Make artifacts and put them into the bundle at `output`, which is created or extended.

    Args:
        force: replace artifacts that the bundle has already, or a bundle of another model.
        keep_going: publish the artifacts that passed although others failed.
        allow_below_gate: publish artifacts that broke a parity bound; the manifest says so.
        progress: told the name of each step as it begins.

    Returns:
        One outcome a job. Nothing is published when one of them is not `ok`, unless the options say otherwise.

    Raises:
        ExportExistsError: the bundle is of another model, or has such an artifact.
        ExportLockedError: another export is writing `output`.
        NonFiniteError: the source's own embeddings are not finite.
    """
    with publish.lock(output):
        existing = _existing(output, source, jobs, force=force)
        progress("golden vectors")
        golden = _golden(source, existing)
        outcomes = _build(source, golden, jobs, opset, progress)
        good = [o for o in outcomes if o.status == "ok" or (o.status == "below gate" and allow_below_gate)]
        if good and (len(good) == len(outcomes) or keep_going):
            progress("bundle")
            _publish(output, source, golden, existing, good)
        return outcomes


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


def _existing(output: Path, source: Source, jobs: Sequence[Job], *, force: bool) -> Bundle | None:
    """The bundle that is to be extended; None where a new one is to be made."""
    if not output.exists():
        return None
    bundle = Bundle.open(output)
    if other := _difference(bundle, source):
        if force:
            return None
        raise ExportExistsError(f"{output}: the bundle there {other}", hint="choose another -o, or --force")
    for job in jobs:
        if not force and bundle.artifacts(tower=job.tower, target=job.target, precision=job.precision):
            raise ExportExistsError(f"{output}: has {job} already", hint="--force replaces it")
    return bundle


def _difference(bundle: Bundle, source: Source) -> str:
    """Why artifacts of `source` cannot join the bundle; empty when they can: one bundle is one model."""
    found = bundle.manifest
    if found.provenance.source_sha256 != source.provenance.source_sha256:
        return f"is of another checkpoint ({found.provenance.source_sha256[:12]}…)"
    if found.preprocess != source.preprocess:
        return "preprocesses images in another way"
    if found.tokenizer != source.tokenizer_spec or bundle.read("tokenizer.json") != source.tokenizer:
        return "has another tokenizer"
    return ""


def _golden(source: Source, existing: Bundle | None) -> Golden:
    """A bundle's golden vectors stay as they are for all its life."""
    if existing is not None:
        return Golden.from_bytes(existing.read(existing.manifest.golden))
    golden = make_golden(source)
    for tower, rows in (("image", golden.image_embeddings), ("text", golden.text_embeddings)):
        if not torch.isfinite(torch.from_numpy(rows)).all():
            raise NonFiniteError(f"the source's {tower} tower returns NaN or infinity in fp32 PyTorch")
    return golden


def _build(source: Source, golden: Golden, jobs: Sequence[Job], opset: int, progress: Progress) -> list[Outcome]:
    portable: dict[tuple[Tower, torch.dtype], bytes] = {}

    def onnx_of(tower: Tower, dtype: torch.dtype) -> bytes:
        if (tower, dtype) not in portable:
            graph = tower_graph(source.clip, tower, source.preprocess, dtype)
            portable[tower, dtype] = to_onnx(graph, tower, example(source.clip, tower), opset)
        return portable[tower, dtype]

    outcomes = []
    for job in jobs:
        progress(str(job))
        try:
            outcomes.append(_measured(job, source, golden, _make(job, onnx_of), opset))
        except EdgeClipError as exc:
            outcomes.append(Outcome(job, failures=[exc.message], error=exc))
    return outcomes


def _make(job: Job, onnx_of: Callable[[Tower, torch.dtype], bytes]) -> dict[str, bytes]:
    """An artifact's files, by name within its folder."""
    if job.target == "onnx":
        dtype = torch.float16 if job.precision == "fp16" else torch.float32
        return {f"{job.tower}.onnx": onnx_of(job.tower, dtype)}
    return to_openvino(onnx_of(job.tower, torch.float32), job.tower, job.precision)


def _measured(job: Job, source: Source, golden: Golden, made: dict[str, bytes], opset: int) -> Outcome:
    """Run an artifact on the golden inputs and hold it against the bounds of its precision."""
    folder = f"{job.target}-{job.precision}"
    files = {f"{folder}/{name}": data for name, data in made.items()}
    draft = _artifact(job, source, sorted(files), opset)
    backend = TARGETS[job.target]
    contents: Files = dict(files)
    session = backends.get(backend).open(draft, contents, Options(threads=available_cpus()))
    inputs, reference = (
        (golden.pixels, golden.image_embeddings) if job.tower == "image" else (golden.ids, golden.text_embeddings)
    )
    try:
        agreement = measure(session.run(inputs), reference)
    finally:
        session.close()
    failures = agreement.failures(bounds_for(job.precision))
    parity = Parity(
        n=agreement.n,
        cosine_mean=agreement.cosine_mean,
        cosine_min=agreement.cosine_min,
        max_abs=agreement.max_abs,
        top1_agreement=agreement.top1_agreement,
        passed=not failures,
        backend=f"{backend} {session.engine.version}",
    )
    return Outcome(job, msgspec.structs.replace(draft, parity=parity), files, agreement, failures)


def _artifact(job: Job, source: Source, names: list[str], opset: int) -> Artifact:
    size = source.preprocess.size
    shape: tuple[str | int, ...] = ("batch", size, size, 3) if job.tower == "image" else ("batch", "context")
    unmeasured = Parity(n=1, cosine_mean=0, cosine_min=0, max_abs=0, top1_agreement=0, passed=False, backend="not run")
    main = next(name for name in names if name.endswith((".onnx", ".xml")))
    libraries = ["torch", "onnx", "onnxscript"] + (["openvino"] if job.target == "openvino" else [])
    return Artifact(
        tower=job.tower,
        target=job.target,
        precision=job.precision,
        file=main,
        files=tuple(names),
        input=TensorSpec(name=INPUT[job.tower], dtype="uint8" if job.tower == "image" else "int32", shape=shape),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=("batch", source.model.embed_dim)),
        parity=unmeasured,
        opset=opset,
        tools={"python": platform.python_version()} | {name: version(name) for name in libraries},
    )


def _publish(output: Path, source: Source, golden: Golden, existing: Bundle | None, good: Sequence[Outcome]) -> None:
    """Write old and new artifacts together, in one step."""
    made = {(o.job.tower, o.job.target, o.job.precision): o for o in good}
    kept = [
        a for a in (existing.manifest.artifacts if existing else ()) if (a.tower, a.target, a.precision) not in made
    ]
    files: dict[str, bytes] = {"tokenizer.json": source.tokenizer, GOLDEN: golden.to_bytes()}
    if existing is not None:  # its accuracy card, which knows what it was measured on
        files |= {name: existing.read(name) for name in existing.loose_files()}
    for artifact in kept:
        assert existing is not None
        files |= {name: existing.read(name) for name in artifact.files}
    for outcome in good:
        files |= outcome.files
    artifacts = [*kept, *(o.artifact for o in good if o.artifact)]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"edgeclip {__version__}",
        model=source.model,
        preprocess=source.preprocess,
        tokenizer=source.tokenizer_spec,
        golden=GOLDEN,
        artifacts=tuple(sorted(artifacts, key=lambda a: (a.target, a.precision, a.tower))),
        files=(),
        provenance=source.provenance,
    )
    write_bundle(output, manifest, files, replace=output.exists())
