"""Integer artifacts for a bundle that exists, from the portable ones that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeclip.bundle import Bundle, add_artifacts
from edgeclip.errors import UsageError
from edgeclip.golden import Golden
from edgeclip.manifest import Artifact, Precision, Tower
from edgeclip.outcome import Job, Outcome, publishable
from edgeclip.quantize.deployment import SYSTEMS, deployment
from edgeclip.quantize.jobs import quantize
from edgeclip.quantize.package_readme import readmes
from edgeclip.quantize.quantizer import Progress, Settings
from edgeclip.quantize.subject import Subject
from edgeclip.quantize.widen import widen
from edgeclip.selection import describe
from edgeclip.tokenizer import Tokenizer


def quantize_bundle(
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
    """Quantize a bundle's model, and write the bundle with the new artifacts to `output`, once and whole.

    Args:
        force: replace artifacts that the bundle has already.
        keep_going: publish the artifacts that passed although others failed.
        allow_below_gate: publish artifacts that broke a bound or the budget; the manifest says so.

    Returns:
        One outcome a job, in their order.

    Raises:
        UsageError: the bundle has no floating-point ONNX of a tower, or has such an artifact already.
    """
    jobs = [_with_system(bundle, job) for job in jobs]
    subject = subject_of(bundle, list(dict.fromkeys(job.tower for job in jobs)))
    made = quantize(subject, jobs, settings, progress=progress)
    outcomes = [made[job] for job in jobs]
    add_published(
        bundle,
        outcomes,
        output=output,
        force=force,
        keep_going=keep_going,
        allow_below_gate=allow_below_gate,
        progress=progress,
    )
    return outcomes


def add_published(
    bundle: Bundle,
    outcomes: Sequence[Outcome],
    *,
    output: Path,
    force: bool,
    keep_going: bool,
    allow_below_gate: bool,
    progress: Progress,
) -> None:
    """Write the bundle to `output` with what may be published of these outcomes; where that is nothing, write nothing.

    Raises:
        ExportExistsError: the bundle has such an artifact already, and `force` is false.
    """
    good = publishable(outcomes, keep_going=keep_going, allow_below_gate=allow_below_gate)
    if not good:
        return
    progress("bundle")
    files = {name: data for outcome in good for name, data in outcome.files.items()}
    artifacts = [outcome.artifact for outcome in good if outcome.artifact]
    add_artifacts(bundle, artifacts, files, output=output, replace=force, beside=readmes)


def subject_of(bundle: Bundle, towers: Sequence[Tower]) -> Subject:
    """A bundle's model, from its fp32 ONNX, or from its fp16 one, whose weights are taken for exact.

    Raises:
        UsageError: it holds neither for one of the towers.
    """
    manifest = bundle.manifest
    found = {tower: portable(bundle, tower) for tower in towers}
    return Subject(
        models={tower: widen(bundle.read(artifact.file)) for tower, artifact in found.items()},
        preprocess=manifest.preprocess,
        tokenizer=tokenizer_of(bundle),
        embed_dim=manifest.model.embed_dim,
        opset=max(artifact.opset or 0 for artifact in found.values()),
        golden=Golden.from_bytes(bundle.read(manifest.golden)),
        packages=lambda tower, precision: _package(bundle, tower),
    )


def _package(bundle: Bundle, tower: Tower) -> dict[str, bytes]:
    """The files of a bundle's Core ML package in half precision, by their names within the artifact's folder."""
    artifact = _half_package(bundle, tower)
    folder = Job(tower, artifact.target, artifact.precision).folder
    return {name.removeprefix(f"{folder}/"): bundle.read(name) for name in artifact.files}


def _half_package(bundle: Bundle, tower: Tower) -> Artifact:
    """
    Raises:
        UsageError: the bundle has none.
    """
    for artifact in bundle.artifacts(tower=tower, target="coreml", precision="fp16"):
        return artifact
    raise UsageError(
        f"{bundle.path}: has no Core ML package of the {tower} tower in fp16 to start from",
        hint=f"`edgeclip export CHECKPOINT --target coreml --precision fp16 -o {bundle.path}` adds it",
    )


def _with_system(bundle: Bundle, job: Job) -> Job:
    """A job for Core ML makes a package for the system that the one in half precision is for.

    Raises:
        UsageError: there is none, or its system cannot run the precision.
    """
    if job.target != "coreml":
        return job
    held = _half_package(bundle, job.tower).deployment
    least = deployment(job.precision)
    if held is None or SYSTEMS.get(held, 0) < SYSTEMS[least]:
        raise UsageError(
            f"{bundle.path}: coreml {job.precision} needs {least}, the fp16 package is for {held}",
            hint=f"export the checkpoint again with --precision fp16 --coreml-target {least} --force",
        )
    return replace(job, deployment=held)


def tokenizer_of(bundle: Bundle) -> Tokenizer | None:
    """A bundle's tokenizer; None where it has no text tower."""
    spec = bundle.manifest.tokenizer
    return Tokenizer(bundle.read(spec.file), spec) if spec else None


def portable(bundle: Bundle, tower: Tower, precisions: Sequence[Precision] = ("fp32", "fp16")) -> Artifact:
    """A bundle's ONNX of a tower, at the first of some precisions that it has.

    Raises:
        UsageError: it has none.
    """
    for precision in precisions:
        for artifact in bundle.artifacts(tower=tower, target="onnx", precision=precision):
            return artifact
    raise UsageError(
        f"{bundle.path}: has no {' or '.join(precisions)} ONNX of the {tower} tower to start from",
        hint=f"it holds: {', '.join(describe(bundle.manifest)) or 'nothing'}; `edgeclip export --target onnx` adds it",
    )
