"""Whether TensorRT builds what is exported for it, and what it keeps: `python -m edgeclip.benchmarks.plans --data DIR`.

Models of full size go through `edgeclip export`, TensorRT-RTX builds their engines, which it does without a GPU, and
ONNX Runtime runs the same graphs on pictures and captions. No kernel of TensorRT runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import numpy as np

from edgeclip.backends.base import Array, Embeddings
from edgeclip.benchmarks import commands
from edgeclip.bundle import Bundle
from edgeclip.cli import machine, progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.errors import ParityError, UsageError
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import Artifact, Precision
from edgeclip.outcome import open_session
from edgeclip.parity import Agreement
from edgeclip.parity import measure as compare
from edgeclip.testset import open_test_set, read_test_set
from edgeclip.tokenizer import Tokenizer

MODELS = ("RN50", "ViT-B-32", "built-in")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
"""The largest first."""
BOUNDS: dict[Precision, tuple[str, float]] = {
    "fp32": ("cosine_min", 0.9999),
    "fp16": ("cosine_min", 0.999),
    "w8a8": ("cosine_mean", 0.99),
}
"""What the embeddings must keep to, against the portable fp32 ONNX."""
SMALLER = "ViT-B-32"
"""The model whose engines must be the smaller the fewer bits there are: the others' weights do not dominate theirs."""
CALIBRATED_ON = "train/flickr8k-000.tar.gz"
PICTURES, CAPTIONS = "eval/wds_pacs_photo", "eval/wds_flickr8k"
"""Held-out, of another source and of the same one."""
BATCH = 16
BUILT_WITH = ("tensorrt-rtx", "onnxruntime", "onnx", "torch")
COLUMNS = (
    *("model", "tower", "precision", "ONNX MB", "plan MB", "build s"),
    *("cos mean", "cos min", "top-1", "cos min, golden", "others"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One artifact."""

    model: str
    tower: str
    precision: Precision
    onnx_bytes: int
    plan_bytes: int
    build_s: float
    agreement: Agreement
    """With the portable fp32 ONNX, on pictures or captions."""
    golden_cosine_min: float
    """With the fp32 PyTorch model, on the bundle's golden inputs."""
    others: float
    """Mean cosine of the reference's embeddings of different inputs: what a cosine means here."""

    def failure(self) -> str:
        """The bound that it breaks, if any."""
        measure, bound = BOUNDS[self.precision]
        found = getattr(self.agreement, measure)
        name = f"{self.model} {self.tower} {self.precision}"
        return "" if found >= bound else f"{name}: {measure.replace('_', ' ')} {found:.6f} < {bound}"

    def cells(self) -> list[str]:
        megabytes = (f"{size / 1e6:.1f}" for size in (self.onnx_bytes, self.plan_bytes))
        cosines = (self.agreement.cosine_mean, self.agreement.cosine_min)
        return [
            *(self.model, self.tower, self.precision, *megabytes, f"{self.build_s:.1f}"),
            *(f"{value:.6f}" for value in cosines),
            f"{self.agreement.top1_agreement:.3f}",
            *(f"{self.golden_cosine_min:.6f}", f"{self.others:.3f}"),
        ]


@click.command(
    "plans",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.plans --data DIR --report docs/reports/tensorrt-build.md",
        "python -m edgeclip.benchmarks.plans --data DIR --model built-in",
    ),
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The folder with `train` and `eval`.")
@click.option("--tokenizer", help="OpenAI's merges, for the models with random weights.")
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, help="All, by default.")
@click.option("--limit", type=click.IntRange(min=2), default=128, show_default=True, help="Pictures, and captions.")
@click.option("--report", type=click.Path(path_type=Path), help="A Markdown file to write.")
@click.pass_obj
def command(
    output: Output, /, data: Path, tokenizer: str | None, models: tuple[str, ...], limit: int, report: Path | None
) -> None:
    """Export models for TensorRT at every precision, build every engine, and compare every embedding.

    Needs no GPU; some 3 GB of disk, and minutes a model. Exits with 1 where a bound is broken.
    """
    need("tensorrt_rtx", extra="tensorrt-ci", what="building engines without a GPU")
    for folder in (CALIBRATED_ON, PICTURES, CAPTIONS):
        if not (data / folder).exists():
            raise UsageError(f"{data / folder}: no such data", hint="--data names the folder with `train` and `eval`")
    chosen = models or MODELS
    with progress.steps(output) as begin:
        rows = [row for model in chosen for row in measured(model, data, tokenizer, limit, begin)]
    output.document["rows"] = rows
    output.table("TensorRT", COLUMNS, [row.cells() for row in rows])
    if report is not None:
        report.write_text(to_markdown(rows, limit), encoding="utf-8")
        output.line(f"written to {report}")
    if broken := failures(rows):
        raise ParityError("; ".join(broken))


def measured(model: str, data: Path, tokenizer: str | None, limit: int, say: Say) -> list[Row]:
    """Export one model, build and run all that comes of it."""
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as scratch:
        bundle = _bundle(model, Path(scratch), data, tokenizer, say)
        inputs = {"image": _pixels(bundle, data, limit), "text": _ids(bundle, data, limit)}
        rows = []
        for tower in ("image", "text"):
            [portable] = bundle.artifacts(tower=tower, target="onnx", precision="fp32")
            reference = _embed(bundle, portable, inputs[tower])
            for precision in PRECISIONS:
                [artifact] = bundle.artifacts(tower=tower, target="tensorrt", precision=precision)
                say(f"{model}: {tower} {precision}")
                rows.append(_row(model, bundle, artifact, reference, inputs[tower]))
        return rows


def failures(rows: Sequence[Row]) -> list[str]:
    """Bounds that are broken, and engines that are not the smaller for having fewer bits."""
    found = [failure for row in rows if (failure := row.failure())]
    for tower in ("image", "text"):
        sizes = [row.plan_bytes for row in rows if (row.model, row.tower) == (SMALLER, tower)]
        if sizes != sorted(sizes, reverse=True):
            found.append(f"{SMALLER} {tower}: engines of {', '.join(PRECISIONS)} have {sizes} bytes")
    return found


def _row(model: str, bundle: Bundle, artifact: Artifact, reference: Embeddings, inputs: Array) -> Row:
    from edgeclip.backends.trt_build import build_plan

    onnx = bundle.read(artifact.file)
    assert artifact.profile is not None
    started = time.perf_counter()
    plan = build_plan(onnx, artifact.profile, precision=artifact.precision, name=f"{model}/{artifact.file}")
    build_s = time.perf_counter() - started
    return Row(
        model=model,
        tower=artifact.tower,
        precision=artifact.precision,
        onnx_bytes=len(onnx),
        plan_bytes=len(plan),
        build_s=build_s,
        agreement=compare(_embed(bundle, artifact, inputs), reference),
        golden_cosine_min=artifact.parity.cosine_min,
        others=float((reference @ reference.T)[np.triu_indices(len(reference), 1)].mean()),
    )


def _embed(bundle: Bundle, artifact: Artifact, inputs: Array) -> Embeddings:
    """By ONNX Runtime, float32 [N, D]."""
    session = open_session(artifact, {name: bundle.read(name) for name in artifact.files})
    try:
        return np.concatenate([session.run(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)])
    finally:
        session.close()


def _pixels(bundle: Bundle, data: Path, limit: int) -> Array:
    return read_test_set(data / PICTURES, bundle.manifest.preprocess, limit=limit).pixels


def _ids(bundle: Bundle, data: Path, limit: int) -> Array:
    """The first caption of each picture."""
    spec = bundle.manifest.tokenizer
    assert spec is not None
    captions = [sample.captions[0] for sample in open_test_set(data / CAPTIONS, limit=limit)]
    return Tokenizer(bundle.read(spec.file), spec)(captions)


def _bundle(model: str, folder: Path, data: Path, tokenizer: str | None, say: Say) -> Bundle:
    """The model for TensorRT at every precision, and its portable fp32, by the command line."""
    path, options = folder / "model.edgeclip", [] if model == "built-in" else ["--random-weights"]
    source = BUILT_IN
    if model != "built-in":
        source = folder / model
        say(f"{model}: random weights")
        named = ["--tokenizer", tokenizer] if tokenizer else []
        commands.run("edgeclip.export.random_checkpoint", model, str(source), *named)
    say(f"{model}: export")
    commands.run(
        "edgeclip", "export", str(source), "--target", "onnx", "--precision", "fp32", "-o", str(path), *options
    )
    if model == "built-in":
        source = path
    calibrated = ["--calib", str(data / CALIBRATED_ON)]
    asked = ["--target", "tensorrt", "--precision", ",".join(PRECISIONS), *calibrated]
    commands.run("edgeclip", "export", str(source), *asked, "-o", str(path), *options)
    return Bundle.open(path)


def to_markdown(rows: Sequence[Row], limit: int) -> str:
    """The report."""
    versions = ", ".join(f"{name} {machine.version_of(name)}" for name in BUILT_WITH)
    lines = [
        "# Engines for TensorRT, built without a GPU",
        "",
        f"By `python -m edgeclip.benchmarks.plans`, {date.today():%-d %B %Y}, on {machine.cpu_model()}: {versions}.",
        "",
        "`edgeclip export` made every artifact, and found nothing that TensorRT would refuse. TensorRT-RTX parsed each",
        "and built an engine for batches of 1 to 32 and texts of any length, in a process of its own. **No engine was",
        "run:** the cosines are those of the same ONNX in ONNX Runtime, to the portable fp32 ONNX, on",
        f"{limit} photographs of `{PICTURES}` and {limit} captions of `{CAPTIONS}`; w8a8 was calibrated on",
        f"`{CALIBRATED_ON}`. *cos min, golden* is to the fp32 PyTorch model, on the bundle's own sixteen inputs.",
        "*others* is the mean cosine of different inputs: how close two embeddings of the model are that have nothing",
        "to do with each other. *top-1* is how often the nearest fp32 embedding is that of the same input. RN50 and",
        "ViT-B/32 have random weights. Times are of one build, whatever else the machine did.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
        "",
        "Bounds: " + ", ".join(f"{key} {name.replace('_', ' ')} ≥ {low}" for key, (name, low) in BOUNDS.items()) + ".",
        *(f"**Broken:** {failure}." for failure in failures(rows)),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.plans"))
