"""Integer artifacts of one model, made, measured and judged."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.errors import EdgeClipError
from edgeclip.manifest import Precision, Target
from edgeclip.outcome import Job, Outcome, draft, judge
from edgeclip.quantize import mil_process
from edgeclip.quantize.narrow import OPSET as QUANTIZED_OPSET
from edgeclip.quantize.produce import LIBRARIES
from edgeclip.quantize.quantizer import Progress, Quantized, Quantizer, Settings
from edgeclip.quantize.subject import Subject


def quantize(
    subject: Subject,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    libraries: Sequence[str] = (),
    progress: Progress = lambda step: None,
) -> dict[Job, Outcome]:
    """Make integer artifacts. The towers of one target and precision share a budget.

    A target that fails does not keep the others from being made.

    Args:
        libraries: distributions that made the fp32 models, whose versions are noted.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        UsageError: a budget, and nothing to measure it on.
    """
    quantizer = Quantizer(subject, settings, progress)
    outcomes: dict[Job, Outcome] = {}
    with mil_process.staying():
        for target, precision in dict.fromkeys((job.target, job.precision) for job in jobs):
            group = [job for job in jobs if (job.target, job.precision) == (target, precision)]
            outcomes |= _group(quantizer, subject, group, target, precision, libraries)
    return outcomes


def _group(
    quantizer: Quantizer,
    subject: Subject,
    group: Sequence[Job],
    target: Target,
    precision: Precision,
    libraries: Sequence[str],
) -> dict[Job, Outcome]:
    try:
        made = quantizer.make(target, precision)
        tools = (*libraries, *LIBRARIES[target])
        return {job: _judged(subject, job, made[job.tower], tools) for job in group}
    except EdgeClipError as exc:
        return {job: Outcome(job, failures=[exc.message], error=exc) for job in group}


def _judged(subject: Subject, job: Job, made: Quantized, libraries: Sequence[str]) -> Outcome:
    """Run an artifact on the golden inputs."""
    files = {f"{job.folder}/{name}": data for name, data in made.files.items()}
    artifact = draft(
        job,
        files,
        subject.preprocess,
        subject.embed_dim,
        subject.context_length,
        opset=max(subject.opset, QUANTIZED_OPSET) if job.target == "tensorrt" else subject.opset,
        libraries=libraries,
        quantization=made.quantization,
    )
    return judge(job, artifact, files, subject.golden, made.failures)
