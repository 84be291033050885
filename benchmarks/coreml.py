"""What Core ML packages weigh and keep at each precision: `python -m edgeclip.benchmarks.coreml --data DIR`.

The command line makes the packages, as an app developer would; the reference executor carries them out in NumPy, on any
machine. Core ML itself runs nothing here, and nothing is timed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import msgspec
import numpy as np

from edgeclip import backends
from edgeclip.benchmarks import commands, fidelity, subjects
from edgeclip.benchmarks.fidelity import Embedded, Fidelity, Trial
from edgeclip.benchmarks.report import Table, table
from edgeclip.benchmarks.subjects import CALIBRATED_ON, EVALUATED_ON, TEACHER, Say, Workshop
from edgeclip.benchmarks.variants import Variant
from edgeclip.bundle import Bundle
from edgeclip.cli import machine, progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.cpus import available_cpus
from edgeclip.errors import ParityError, UsageError
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import Artifact, Precision, Tower
from edgeclip.paired import Cosines
from edgeclip.tokenizer import Tokenizer

STUDENT, B32 = "edge-s", "ViT-B-32"
UNTRAINED = "random weights"
MODELS = {"RN50": UNTRAINED, B32: UNTRAINED, "edge-t": "the teacher", STUDENT: "the built-in student"}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a16", "w8a8", "w6a16", "w4a16")
TOWERS: tuple[Tower, ...] = ("image", "text")
CAPTIONED = "eval/wds_flickr8k"
COSINES: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "w8a16": 0.99}
"""The least that an embedding may have, of any tower; fewer bits cost random weights more than trained ones."""
SHARES: dict[Precision, float] = {"fp16": 0.51, "w8a16": 0.27, "w4a16": 0.15}
"""Of the fp32 package's size, what one of the image tower of `B32` may have."""
MADE_WITH = ("coremltools", "torch", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Row:
    """One package."""

    model: str
    tower: Tower
    precision: Precision
    size_bytes: int
    share: float
    """Of the fp32 package's size."""
    cosines: Cosines
    """With the fp32 ONNX in ONNX Runtime, on pictures or texts."""
    golden_min: float
    """The least cosine with the fp32 PyTorch model, on the bundle's own inputs."""
    others: float
    """Mean cosine of the reference's embeddings of different inputs: what a cosine means here."""
    passed: bool
    """Whether it is within the bounds that `edgeclip export` holds its precision against, on those inputs."""
    deployment: str
    """The oldest system that runs it."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.tower} {self.precision}"

    def failures(self) -> list[str]:
        """The bounds that it breaks."""
        found = []
        least, most = COSINES.get(self.precision), SHARES.get(self.precision)
        if least is not None and min(self.cosines.min, self.golden_min) < least:
            found.append(f"{self.name}: cosine min {min(self.cosines.min, self.golden_min):.6f} < {least}")
        if most is not None and (self.model, self.tower) == (B32, "image") and self.share > most:
            found.append(f"{self.name}: {self.share:.3f} of fp32's size > {most}")
        if not self.passed and MODELS[self.model] != UNTRAINED:
            found.append(f"{self.name}: below its gate")
        return found

    def cells(self) -> list[str]:
        cosines = (self.cosines.mean, self.cosines.p1, self.cosines.min, self.golden_min)
        size = f"{self.size_bytes / 1e6:.2f}"
        return [
            *(self.model, self.tower, self.precision, self.deployment, size, f"{self.share:.3f}"),
            *(f"{value:.6f}" for value in cosines),
            f"{self.others:.3f}",
        ]


@dataclass(frozen=True)
class Accuracy:
    """What both towers together get right."""

    precision: Precision
    found: Fidelity

    def cells(self) -> list[str]:
        top1, lost = self.found.top1, self.found.drop
        assert top1 is not None and lost is not None
        return [
            self.precision,
            f"{100 * top1.value:.1f} [{100 * top1.low:.1f}, {100 * top1.high:.1f}]",
            f"{lost.drop_pt:+.2f} [{lost.low_pt:+.2f}, {lost.high_pt:+.2f}]",
            f"{100 * self.found.agreement:.1f}",
        ]


@dataclass(frozen=True)
class Findings:
    """What was measured of one model."""

    rows: list[Row]
    accuracies: list[Accuracy]
    """Empty where nothing is to be right."""


@click.command(
    "coreml",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.coreml --data DIR --tokenizer merges.txt.gz --report docs/reports/coreml.md",
        "python -m edgeclip.benchmarks.coreml --data DIR --model edge-s --limit 100",
    ),
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The folder with `train` and `eval`.")
@click.option("--tokenizer", help="OpenAI's merges, for the models with random weights.")
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, help="All, by default.")
@click.option("--limit", type=click.IntRange(min=2), default=1000, show_default=True, help="Pictures for top-1.")
@click.option("--pairs", type=click.IntRange(min=2), default=24, show_default=True, help="Captioned pictures.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/coreml"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="A Markdown file to write.")
@click.pass_obj
def command(
    output: Output,
    /,
    data: Path,
    tokenizer: str | None,
    models: tuple[str, ...],
    limit: int,
    pairs: int,
    work: Path,
    report: Path | None,
) -> None:
    """Make Core ML packages of models at every precision, weigh them, and compare every embedding.

    The reference executor is slow: all models take half an hour on one core. Packages, and what was measured of them,
    are kept in --work for the next run. Exits with 1 where a bound is broken.
    """
    need("coremltools", extra="coreml", what="making Core ML packages")
    for folder in (CALIBRATED_ON, EVALUATED_ON, CAPTIONED):
        if not (data / folder).exists():
            raise UsageError(f"{data / folder}: no such data", hint="--data names the folder with `train` and `eval`")
    with progress.steps(output) as begin:
        each = [_findings(model, data, tokenizer, limit, pairs, work, begin) for model in models or MODELS]
    rows = [row for found in each for row in found.rows]
    accuracies = [one for found in each for one in found.accuracies]
    output.document |= {"rows": rows, "accuracy": accuracies, "limit": limit, "pairs": pairs}
    for title, columns, cells in tables(rows, accuracies, limit):
        output.table(title, columns, cells)
    if report is not None:
        report.write_text(to_markdown(rows, accuracies, limit, pairs), encoding="utf-8")
        output.line(f"written to {report}")
    if broken := failures(rows):
        raise ParityError("; ".join(broken))


def failures(rows: Sequence[Row]) -> list[str]:
    """Bounds that are broken."""
    return [failure for row in rows for failure in row.failures()]


def _findings(model: str, data: Path, tokenizer: str | None, limit: int, pairs: int, work: Path, say: Say) -> Findings:
    """Of this run, or of an earlier one with the same packages, the same pictures and the same code."""
    bundle = Bundle.open(_bundle(model, work, data, tokenizer, say))
    kept = work / f"{model}-{_fingerprint(bundle, limit if model == STUDENT else pairs)}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Findings)
    trial = _trial(model, bundle, data, limit, pairs)
    reference, found = measured(model, bundle, trial, say)
    rows = [_row(model, artifact, bundle, reference, found) for artifact in _packages(bundle)]
    findings = Findings(rows, [Accuracy(p, found[p]) for p in PRECISIONS if trial.labels is not None])
    kept.write_bytes(msgspec.json.encode(findings))
    return findings


def _fingerprint(bundle: Bundle, count: int) -> str:
    """Of all that is compared, and of the code that carries it out."""
    digest = hashlib.sha256(f"{bundle.digest} {count} {np.__version__}".encode())
    for file in sorted((*Path(backends.__file__).parent.glob("*.py"), Path(__file__), Path(fidelity.__file__))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measured(model: str, bundle: Bundle, trial: Trial, say: Say) -> tuple[Embedded, dict[Precision, Fidelity]]:
    """What the fp32 ONNX gives, and what each precision keeps of it."""
    threads = available_cpus()
    say(f"{model}: fp32 in ONNX Runtime")
    reference = fidelity.embed(trial, Variant(bundle, "onnx", "fp32"), threads)
    found = {}
    for precision in PRECISIONS:
        say(f"{model}: {precision}")
        embedded = fidelity.embed(trial, Variant(bundle, "coreml", precision), threads)
        found[precision] = fidelity.compare(trial, embedded, reference)
    return reference, found


def _row(model: str, artifact: Artifact, bundle: Bundle, reference: Embedded, found: dict[Precision, Fidelity]) -> Row:
    tower, precision = artifact.tower, artifact.precision
    [whole] = bundle.artifacts(tower=tower, target="coreml", precision="fp32")
    size, kept = _size(bundle, artifact), found[precision]
    embeddings = reference.images if tower == "image" else reference.texts
    return Row(
        model=model,
        tower=tower,
        precision=precision,
        size_bytes=size,
        share=size / _size(bundle, whole),
        cosines=kept.images if tower == "image" else kept.texts,
        golden_min=artifact.parity.cosine_min,
        others=float((embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)].mean()),
        passed=artifact.parity.passed,
        deployment=artifact.deployment or "",
    )


def _packages(bundle: Bundle) -> list[Artifact]:
    """The text tower's after the image tower's, the most precise first."""
    return [
        artifact
        for tower in TOWERS
        for precision in PRECISIONS
        for artifact in bundle.artifacts(tower=tower, target="coreml", precision=precision)
    ]


def _size(bundle: Bundle, artifact: Artifact) -> int:
    sizes = {entry.path: entry.size for entry in bundle.manifest.files}
    return sum(sizes[name] for name in artifact.files)


def _trial(model: str, bundle: Bundle, data: Path, limit: int, pairs: int) -> Trial:
    """Classes for the student, captions for the others: what those would get right is not in question."""
    spec, preprocess = bundle.manifest.tokenizer, bundle.manifest.preprocess
    assert spec is not None
    tokenizer = Tokenizer(bundle.read(spec.file), spec)
    if model == STUDENT:
        return fidelity.labelled(data / EVALUATED_ON, preprocess, tokenizer, limit=limit)
    return fidelity.captioned(data / CAPTIONED, preprocess, tokenizer, limit=pairs)


def _bundle(model: str, work: Path, data: Path, tokenizer: str | None, say: Say) -> Path:
    """The model's packages at every precision, and its fp32 ONNX, by the command line."""
    workshop = Workshop(work, data, Path(tokenizer or ""), say)
    source, options = _source(model, work, tokenizer, say)
    bundle = workshop.begin(model, source)
    beginning = str(bundle if source.is_file() else source)
    workshop.add(bundle, ["export", beginning, *options], ["onnx"], "fp32")
    asked = ["export", beginning, *options, "--calib", str(data / CALIBRATED_ON), "--allow-below-gate"]
    workshop.add(bundle, asked, ["coreml"], ",".join(PRECISIONS))
    return bundle


def _source(model: str, work: Path, tokenizer: str | None, say: Say) -> tuple[Path, list[str]]:
    """A checkpoint or a bundle, and what the export must be told of it."""
    if model == STUDENT:
        return BUILT_IN, []
    if model == "edge-t":
        return subjects.require(TEACHER), []
    folder = work / model
    if not folder.is_dir():
        say(f"{model}: random weights")
        named = ["--tokenizer", tokenizer] if tokenizer else []
        commands.run("edgeclip.export.random_checkpoint", model, str(folder), *named)
    return folder, ["--random-weights"]


def tables(rows: Sequence[Row], accuracies: Sequence[Accuracy], limit: int) -> list[Table]:
    """Of the packages, and of what they get right."""
    columns = ("model", "tower", "precision", "needs", "MB", "of fp32")
    kept = ("cos mean", "cos p1", "cos min", "cos min, golden", "others")
    found: list[Table] = [("Packages", (*columns, *kept), [row.cells() for row in rows])]
    if accuracies:
        title = f"{STUDENT}: {limit} pictures of {Path(EVALUATED_ON).name}"
        heads = ("precision", "top-1, % [95 %]", "points lost [95 %]", "as fp32, %")
        found.append((title, heads, [one.cells() for one in accuracies]))
    return found


def to_markdown(rows: Sequence[Row], accuracies: Sequence[Accuracy], limit: int, pairs: int) -> str:
    """The report."""
    versions = ", ".join(f"{name} {machine.version_of(name)}" for name in MADE_WITH)
    models = ", ".join(f"{name} ({what})" for name, what in MODELS.items() if name in {row.model for row in rows})
    cosines = ", ".join(f"{precision} {least}" for precision, least in COSINES.items())
    shares = ", ".join(f"{precision} {most}" for precision, most in SHARES.items())
    about = (
        f"By `python -m edgeclip.benchmarks.coreml`, {date.today():%-d %B %Y}, on {machine.cpu_model()}: {versions}. "
        "`edgeclip export` made every package, and the reference executor carried it out in NumPy, in the types that "
        "it states. **Core ML ran none of them**: no Mac or iPhone was at hand, so nothing here is a time, and what "
        "the Neural Engine rounds differently is not in the numbers.",
        f"Models: {models}. Cosines are with the fp32 ONNX in ONNX Runtime, on {pairs} pictures and captions of "
        f"`{CAPTIONED}`, for {STUDENT} on the pictures and prompts of the second table. *cos min, golden* is the least "
        "with the fp32 PyTorch model, on the sixteen inputs that the bundle carries. w8a8 was calibrated on "
        f"`{CALIBRATED_ON}`. *others* is the mean cosine of different inputs' embeddings: how close two are that have "
        "nothing to do with each other. *needs* is the oldest system. Random weights are harder to round than trained "
        "ones: of integers below 8 bits their cosines say that the arithmetic is right, and little else.",
        f"Bounds: cosine min of {cosines}; size of {B32}'s image tower by fp32's, at most: {shares}; and of "
        "the trained models, at every precision, the gate of `edgeclip export`.",
    )
    broken = [f"**Broken:** {failure}." for failure in failures(rows)]
    found = [table(one) for one in tables(rows, accuracies, limit)]
    lost = (
        "Points are lost of the fp32 ONNX's top-1, on the same pictures, with Tango's interval; *as fp32* is the share "
        "of pictures whose nearest class is the same."
    )
    return "\n\n".join(["# Core ML packages", *about, *broken, *found, *([lost] if accuracies else [])]) + "\n"


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.coreml"))
