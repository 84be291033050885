"""Export from a bundle that exists: its portable ONNX stands in for the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError
from edgeclip.export.bundle_source import source_of
from edgeclip.export.to_coreml import Packages
from edgeclip.export.to_openvino import to_openvino
from edgeclip.export.to_tensorrt import to_tensorrt
from edgeclip.golden import Golden
from edgeclip.manifest import Target
from edgeclip.outcome import Job, Outcome, draft, judge
from edgeclip.quantize import mil_process
from edgeclip.quantize.bundled import add_published, portable, subject_of
from edgeclip.quantize.jobs import quantize
from edgeclip.quantize.quantizer import Progress, Settings
from edgeclip.quantize.scheme import is_integer
from edgeclip.quantize.widen import widen

_LIBRARIES: dict[Target, tuple[str, ...]] = {"openvino": ("openvino",), "coreml": ("torch", "coremltools")}
"""Distributions besides onnx whose versions a floating-point artifact notes."""


def export_bundle(
    bundle: Bundle,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    output: Path,
    force: bool = False,
    keep_going: bool = False,
    allow_below_gate: bool = False,
    progress: Progress = lambda step: None,
) -> list[Outcome]:
    """Make artifacts from a bundle's fp32 or fp16 ONNX, and write the bundle with them to `output`, once and whole.

    What rounding to half precision lost stays lost: where there is an fp16 ONNX alone, its weights are taken for exact.
    Each artifact is still measured against the bundle's golden vectors, which are of the fp32 checkpoint.

    Args:
        force: replace artifacts that the bundle has already.
        keep_going: publish the artifacts that passed although others failed.
        allow_below_gate: publish artifacts that broke a bound or the budget; the manifest says so.
        settings: what integer precisions are calibrated and measured on.

    Returns:
        One outcome a job, in their order.

    Raises:
        UsageError: the bundle has no floating-point ONNX of a tower; or, for Core ML, its model is of no
            architecture with a name.
        ExportExistsError: it has such an artifact already.
    """
    with mil_process.staying():
        outcomes = _build(bundle, jobs, settings, progress)
    ordered = [outcomes[job] for job in jobs]
    add_published(
        bundle,
        ordered,
        output=output,
        force=force,
        keep_going=keep_going,
        allow_below_gate=allow_below_gate,
        progress=progress,
    )
    return ordered


def _build(bundle: Bundle, jobs: Sequence[Job], settings: Settings, progress: Progress) -> dict[Job, Outcome]:
    golden = Golden.from_bytes(bundle.read(bundle.manifest.golden))
    package_of = _packages(bundle, jobs, golden)
    outcomes = {}
    for job in jobs:
        if not is_integer(job.precision):
            progress(str(job))
            outcomes[job] = _attempt(bundle, job, golden, package_of)
    if integers := [job for job in jobs if is_integer(job.precision)]:
        subject = subject_of(bundle, list(dict.fromkeys(job.tower for job in integers)))
        outcomes |= quantize(replace(subject, packages=package_of), integers, settings, progress=progress)
    return outcomes


def _packages(bundle: Bundle, jobs: Sequence[Job], golden: Golden) -> Packages | None:
    """Core ML packages, for which the model is built again in PyTorch."""
    towers = list(dict.fromkeys(job.tower for job in jobs if job.target == "coreml"))
    return Packages(source_of(bundle, towers), golden, jobs) if towers else None


def _attempt(bundle: Bundle, job: Job, golden: Golden, package_of: Packages | None) -> Outcome:
    """Make a floating-point artifact, and run it on the golden inputs."""
    manifest = bundle.manifest
    try:
        files, opset = _package(job, package_of) if package_of and job.target == "coreml" else _make(bundle, job)
        artifact = draft(
            job,
            files,
            manifest.preprocess,
            manifest.model.embed_dim,
            manifest.tokenizer.context_length if manifest.tokenizer else None,
            opset=opset,
            libraries=("onnx", *_LIBRARIES.get(job.target, ())),
        )
        return judge(job, artifact, files, golden)
    except EdgeClipError as exc:
        return Outcome(job, failures=[exc.message], error=exc)


def _package(job: Job, package_of: Packages) -> tuple[dict[str, bytes], None]:
    """A Core ML artifact's files; it has no opset."""
    return {f"{job.folder}/{name}": data for name, data in package_of(job.tower, job.precision).items()}, None


def _make(bundle: Bundle, job: Job) -> tuple[dict[str, bytes], int | None]:
    """An artifact's files, and their opset. Half precision in ONNX takes an fp16 ONNX; OpenVINO makes it itself."""
    half = job.precision == "fp16" and job.target != "openvino"
    held = portable(bundle, job.tower, ("fp16",) if half else ("fp32", "fp16"))
    model = bundle.read(held.file) if half else widen(bundle.read(held.file))
    if job.target == "openvino":
        files = to_openvino(model, job.tower, job.precision)
    else:
        files = to_tensorrt(model, job.tower) if job.target == "tensorrt" else {f"{job.tower}.onnx": model}
    return {f"{job.folder}/{name}": data for name, data in files.items()}, held.opset
