"""`edgeclip export`: from a checkpoint to a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import click

from edgeclip import publish
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import PRECISIONS, checkpoint_options, max_batch_option, need_export
from edgeclip.cli.output import Output
from edgeclip.cli.parity import COLUMNS, allowed, measured, megabytes
from edgeclip.cli.quantizing import Measuring, quantize_options, show_budgets
from edgeclip.errors import UsageError
from edgeclip.manifest import Precision, Target
from edgeclip.outcome import MAX_BATCH, Outcome, publishable, raise_if_failed
from edgeclip.parity import bounds_for
from edgeclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgeclip.export.source import Source

HUB = "hf-hub:"
ALIASES = {"int8": "w8a8"}
SCALES = "scales.safetensors"
"""Of a checkpoint that was trained with rounding; see `quantize/scales.py`."""


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip export ./clip-vit-base-patch32 --target onnx,openvino",
        "edgeclip export ViT-B-32.pt --target onnx --tokenizer bpe_simple_vocab_16e6.txt.gz -o b32.edgeclip",
        "edgeclip export hf-hub:openai/clip-vit-base-patch32 --target openvino --precision fp32,fp16",
        "edgeclip export ./clip-vit-base-patch32 --target tensorrt --precision fp16 --max-batch 8",
    ),
)
@click.argument("source")
@click.option("--target", "targets", multiple=True, help="onnx, openvino, tensorrt; several with commas.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="fp32, fp16, w8a8 (or int8), w8a16, w4a16; several with commas.",
)
@click.option("--tower", type=click.Choice(["image", "text", "both"]), default="both", show_default=True)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="The bundle; SOURCE.edgeclip by default.")
@click.option("--tokenizer", help="tokenizer.json, a folder that has one, OpenAI's merges, or hf-hub:ORG/NAME.")
@click.option("--opset", type=int, default=18, show_default=True, help="ONNX opset, 17 to 20.")
@max_batch_option
@quantize_options
@checkpoint_options
@click.option("--name", help="Of the model, in the bundle.")
@click.option("--licence", help="Of the weights, when the checkpoint does not say.")
@click.option("--random-weights", is_flag=True, help="Say in the bundle that the weights were never trained.")
@click.option("--force", is_flag=True, help="Replace artifacts that are there, or a bundle of another model.")
@click.option("--keep-going", is_flag=True, help="Publish what passed although something else failed.")
@click.option("--allow-below-gate", is_flag=True, help="Publish artifacts that broke a bound; the bundle says so.")
@click.pass_obj
def command(
    output: Output,
    /,
    source: str,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    tower: Literal["image", "text", "both"],
    path: Path | None,
    opset: int,
    max_batch: int | None,
    measuring: Measuring,
    force: bool,
    keep_going: bool,
    allow_below_gate: bool,
    **reading: Any,
) -> None:
    """Export the CLIP checkpoint SOURCE into a bundle.

    SOURCE is a file, a folder or hf-hub:ORG/NAME[@REVISION], of OpenAI, OpenCLIP, Hugging Face or edgeclip. Each
    artifact is run and compared with the fp32 model; the bundle is written when every one is within its bounds. A
    bundle of the same checkpoint that is there already is added to.
    """
    wanted, kinds = asked_targets(targets), asked_precisions(precisions)
    rows = asked_batch(max_batch, wanted)
    path = path or default_output(source)
    publish.check_output(path, replace=True)
    measuring.check(kinds, learned=(Path(source) / SCALES).is_file())
    need_export()
    started = time.perf_counter()
    with progress.steps(output) as begin:
        begin("loading PyTorch")
        from edgeclip.export.pipeline import export, plan

        jobs = plan(wanted, kinds, None if tower == "both" else tower, rows)
        begin("reading the checkpoint")
        opened = open_checkpoint(source, **reading)
        tokenizer = partial(Tokenizer, opened.tokenizer, opened.tokenizer_spec)
        outcomes = export(
            opened,
            path,
            jobs,
            opset=opset,
            force=force,
            keep_going=keep_going,
            allow_below_gate=allow_below_gate,
            settings=measuring.settings(output, opened.preprocess, tokenizer, begin),
            progress=begin,
        )
    show(output, outcomes)
    show_budgets(output, outcomes)
    written = bool(publishable(outcomes, keep_going=keep_going, allow_below_gate=allow_below_gate))
    conclude(output, path, written, time.perf_counter() - started)
    raise_if_failed(outcomes, allow_below_gate=allow_below_gate)


def asked_targets(values: Sequence[str]) -> list[Target]:
    """What `--target` names. Raises as `chosen`."""
    return cast("list[Target]", chosen("target", values, get_args(Target)))


def asked_precisions(values: Sequence[str]) -> list[Precision]:
    """What `--precision` names, aliases resolved. Raises as `chosen`."""
    parts = [ALIASES.get(part.strip(), part.strip()) for value in values for part in value.split(",")]
    return cast("list[Precision]", chosen("precision", parts, PRECISIONS))


def asked_batch(value: int | None, targets: Sequence[Target]) -> int:
    """What `--max-batch` says.

    Raises:
        UsageError: no target has such a limit.
    """
    if value is not None and "tensorrt" not in targets:
        raise UsageError("--max-batch is for target tensorrt: what the others make takes any batch")
    return value or MAX_BATCH


def chosen(option: str, values: Sequence[str], known: Sequence[str]) -> list[str]:
    """What an option names, by commas or repeatedly, each once.

    Raises:
        UsageError: nothing, or something unknown.
    """
    names = list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))
    if not names:
        raise UsageError(f"--{option} is required", hint=f"one or more of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {option} {name!r}", hint=f"one or more of: {', '.join(known)}")
    return names


def default_output(source: str) -> Path:
    """`NAME.edgeclip` in the working directory, by the source's base name."""
    if source.startswith(HUB):
        name = source.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    else:
        path = Path(source).resolve()
        name = path.name if path.is_dir() else path.stem
    return Path(f"{name or 'model'}.edgeclip")


def open_checkpoint(source: str, **reading: Any) -> Source:
    """`open_source`, PyTorch imported."""
    from edgeclip.export.source import open_source

    return open_source(source, **reading)


def show(output: Output, outcomes: Sequence[Outcome]) -> None:
    """Print what became of each artifact."""
    output.document["artifacts"] = [_described(outcome) for outcome in outcomes]
    rows = [
        [
            str(outcome.job),
            output.status(outcome.status),
            megabytes(outcome.size_bytes) if outcome.artifact else "",
            *measured(outcome.agreement),
            ", ".join(outcome.failures),
        ]
        for outcome in outcomes
    ]
    output.table("Export", ("artifact", "status", "MB", *COLUMNS, "reason"), rows)
    for precision in dict.fromkeys(outcome.job.precision for outcome in outcomes):
        output.line(allowed(precision, bounds_for(precision)))


def _described(outcome: Outcome) -> dict[str, Any]:
    return {
        "tower": outcome.job.tower,
        "target": outcome.job.target,
        "precision": outcome.job.precision,
        "status": outcome.status,
        "size_bytes": outcome.size_bytes,
        "agreement": outcome.agreement,
        "bounds": bounds_for(outcome.job.precision),
        "failures": outcome.failures,
    }


def conclude(output: Output, path: Path, written: bool, seconds: float) -> None:
    """Say whether and where the bundle was written."""
    output.document |= {"bundle": str(path), "published": written, "elapsed_s": round(seconds, 3)}
    if not written:
        output.line("Nothing was published.")
        return
    from edgeclip.bundle import Bundle

    bundle = Bundle.open(path)
    size = sum(entry.size for entry in bundle.manifest.files)
    output.document |= {"digest": bundle.digest, "bundle_bytes": size}
    output.line(f"{path}: {megabytes(size)} MB, {bundle.digest}, in {seconds:.1f} s")
