"""Export: source → graph → artifact → parity gate → bundle.

Everything is built and measured before the output is touched; the bundle is published once, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from edgeclip import __version__, publish
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.errors import EdgeClipError, ExportExistsError, NonFiniteError, UsageError
from edgeclip.export.golden import make_golden
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.source import Source
from edgeclip.export.to_coreml import Packages
from edgeclip.export.to_onnx import DEFAULT_OPSET, to_onnx
from edgeclip.export.to_openvino import to_openvino
from edgeclip.export.to_tensorrt import to_tensorrt
from edgeclip.golden import FILE as GOLDEN
from edgeclip.golden import Golden
from edgeclip.manifest import FORMAT_VERSION, Manifest, Precision, Target, Tower
from edgeclip.outcome import MAX_BATCH, Job, Outcome, draft, jobs_of, judge, publishable, refuse_existing
from edgeclip.quantize import mil_process
from edgeclip.quantize.deployment import deployment
from edgeclip.quantize.jobs import quantize
from edgeclip.quantize.package_readme import readmes
from edgeclip.quantize.quantizer import Settings
from edgeclip.quantize.scheme import SCHEMES, is_integer
from edgeclip.quantize.subject import Subject
from edgeclip.tokenizer import Tokenizer

FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
PRECISIONS: dict[Target, tuple[Precision, ...]] = {
    "onnx": (*FLOATS, *SCHEMES["onnx"]),
    "openvino": (*FLOATS, *SCHEMES["openvino"]),
    "tensorrt": (*FLOATS, *SCHEMES["tensorrt"]),
    "coreml": (*FLOATS, *SCHEMES["coreml"]),
}
"""What can be exported."""
_LIBRARIES: dict[Target, tuple[str, ...]] = {
    "onnx": ("torch", "onnx", "onnxscript"),
    "openvino": ("torch", "onnx", "onnxscript", "openvino"),
    "tensorrt": ("torch", "onnx", "onnxscript"),
    "coreml": ("torch", "coremltools"),
}
"""Distributions whose versions a floating-point artifact notes."""

UNMEASURED = Settings()
"""No calibration, no evaluation, no budget."""
Progress = Callable[[str], None]


def plan(
    targets: Iterable[Target],
    precisions: Iterable[Precision],
    tower: Tower | None,
    max_batch: int = MAX_BATCH,
    coreml_target: str | None = None,
) -> list[Job]:
    """All jobs of a call: targets × precisions × towers.

    Args:
        coreml_target: the oldest system that Core ML packages shall run on; by precision where it is not said.

    Raises:
        UsageError: a target that cannot be exported, or not at such a precision, or not for such a system.
    """
    jobs = jobs_of(targets, precisions, (tower,) if tower else ("image", "text"), max_batch)
    for job in jobs:
        if job.target not in PRECISIONS:
            raise UsageError(f"target {job.target!r} cannot be exported", hint=f"one of: {', '.join(PRECISIONS)}")
        if job.precision not in PRECISIONS[job.target]:
            raise UsageError(
                f"target {job.target} cannot be exported at precision {job.precision!r}",
                hint=f"one of: {', '.join(PRECISIONS[job.target])}",
            )
    return [
        replace(job, deployment=deployment(job.precision, coreml_target)) if job.target == "coreml" else job
        for job in jobs
    ]


def export(
    source: Source,
    output: Path,
    jobs: Sequence[Job],
    *,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    keep_going: bool = False,
    allow_below_gate: bool = False,
    settings: Settings = UNMEASURED,
    progress: Progress = lambda step: None,
) -> list[Outcome]:
    """Make artifacts and put them into the bundle at `output`, which is created or extended.

    Args:
        force: replace artifacts that the bundle has already, or a bundle of another model.
        keep_going: publish the artifacts that passed although others failed.
        allow_below_gate: publish artifacts that broke a parity bound; the manifest says so.
        settings: what integer precisions are calibrated and measured on.
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
        with mil_process.staying():
            outcomes = _build(source, golden, jobs, opset, settings, progress)
        if good := publishable(outcomes, keep_going=keep_going, allow_below_gate=allow_below_gate):
            progress("bundle")
            _publish(output, source, golden, existing, good)
        return outcomes


def _existing(output: Path, source: Source, jobs: Sequence[Job], *, force: bool) -> Bundle | None:
    """The bundle that is to be extended; None where a new one is to be made."""
    if not output.exists():
        return None
    bundle = Bundle.open(output)
    if other := _difference(bundle, source):
        if force:
            return None
        raise ExportExistsError(f"{output}: the bundle there {other}", hint="choose another -o, or --force")
    if not force:
        refuse_existing(bundle, jobs, output)
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


def _build(
    source: Source, golden: Golden, jobs: Sequence[Job], opset: int, settings: Settings, progress: Progress
) -> list[Outcome]:
    """An outcome for each job, in their order. One that fails does not keep the others from being made."""
    onnx_of, package_of = _Portable(source, opset), Packages(source, golden, jobs)
    outcomes = {}
    for job in jobs:
        if not is_integer(job.precision):
            progress(str(job))
            outcomes[job] = _attempt(job, source, golden, onnx_of, package_of)
    integers = [job for job in jobs if is_integer(job.precision)]
    if integers:
        outcomes |= _quantize(source, golden, integers, onnx_of, package_of, settings, progress)
    return [outcomes[job] for job in jobs]


class _Portable:
    """The ONNX of each tower and type, made once."""

    def __init__(self, source: Source, opset: int) -> None:
        self._source = source
        self.opset = opset
        self._made: dict[tuple[Tower, torch.dtype], bytes] = {}

    def __call__(self, tower: Tower, dtype: torch.dtype = torch.float32) -> bytes:
        if (tower, dtype) not in self._made:
            graph = tower_graph(self._source.clip, tower, self._source.preprocess, dtype)
            self._made[tower, dtype] = to_onnx(graph, tower, example(self._source.clip, tower), self.opset)
        return self._made[tower, dtype]


def _attempt(job: Job, source: Source, golden: Golden, onnx_of: _Portable, package_of: Packages) -> Outcome:
    """Make a floating-point artifact, and run it on the golden inputs."""
    try:
        made = package_of(job.tower, job.precision) if job.target == "coreml" else _make(job, onnx_of)
        files = {f"{job.folder}/{name}": data for name, data in made.items()}
        artifact = draft(
            job,
            files,
            source.preprocess,
            source.model.embed_dim,
            source.tokenizer_spec.context_length,
            opset=onnx_of.opset,
            libraries=_LIBRARIES[job.target],
        )
        return judge(job, artifact, files, golden)
    except EdgeClipError as exc:
        return Outcome(job, failures=[exc.message], error=exc)


def _make(job: Job, onnx_of: _Portable) -> dict[str, bytes]:
    """An artifact's files, by name within its folder."""
    if job.target == "openvino":
        return to_openvino(onnx_of(job.tower), job.tower, job.precision)
    model = onnx_of(job.tower, torch.float16 if job.precision == "fp16" else torch.float32)
    return to_tensorrt(model, job.tower) if job.target == "tensorrt" else {f"{job.tower}.onnx": model}


def _quantize(
    source: Source,
    golden: Golden,
    jobs: Sequence[Job],
    onnx_of: _Portable,
    package_of: Packages,
    settings: Settings,
    progress: Progress,
) -> dict[Job, Outcome]:
    subject = Subject(
        models={tower: onnx_of(tower) for tower in dict.fromkeys(job.tower for job in jobs)},
        preprocess=source.preprocess,
        tokenizer=Tokenizer(source.tokenizer, source.tokenizer_spec),
        embed_dim=source.model.embed_dim,
        opset=onnx_of.opset,
        golden=golden,
        learned=source.learned,
        packages=package_of,
    )
    return quantize(subject, jobs, settings, libraries=("torch", "onnxscript"), progress=progress)


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
    write_bundle(output, manifest, files | readmes(manifest), replace=output.exists())
