"""`edgeclip export`: from a checkpoint to a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import click

from edgeclip import publish
from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import (
    PRECISIONS,
    checkpoint_options,
    coreml_target_option,
    max_batch_option,
    need_export,
    need_toolchains,
)
from edgeclip.cli.output import Output
from edgeclip.cli.parity import COLUMNS, allowed, measured, megabytes
from edgeclip.cli.quantizing import Measuring, quantize_options, show_budgets
from edgeclip.errors import UsageError
from edgeclip.manifest import Precision, Target, Tower
from edgeclip.outcome import MAX_BATCH, Job, Outcome, publishable, raise_if_failed, refuse_existing
from edgeclip.parity import bounds_for
from edgeclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgeclip.export.source import Source

HUB = "hf-hub:"
Progress = Callable[[str], None]
ALIASES = {"int8": "w8a8"}
SCALES = "scales.safetensors"
"""Of a checkpoint that was trained with rounding; see `quantize/scales.py`."""


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip export ./clip-vit-base-patch32 --target onnx,openvino",
        "edgeclip export ViT-B-32.pt --target onnx --tokenizer bpe_simple_vocab_16e6.txt.gz -o b32.edgeclip",
        "edgeclip export hf-hub:openai/clip-vit-base-patch32 --target openvino --precision fp32,fp16",
        "edgeclip export b32.edgeclip --target tensorrt --precision fp16 --max-batch 8",
        "edgeclip export ./clip-vit-base-patch32 --target coreml --precision fp16,w8a16 --coreml-target iOS18",
    ),
)
@click.argument("source")
@click.option("--target", "targets", multiple=True, help="onnx, openvino, tensorrt, coreml; several with commas.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="fp32, fp16, w8a8 (or int8), w8a16, w6a16, w4a16; several with commas.",
)
@click.option("--tower", type=click.Choice(["image", "text", "both"]), default="both", show_default=True)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="The bundle; SOURCE.edgeclip by default.")
@click.option("--tokenizer", help="tokenizer.json, a folder that has one, OpenAI's merges, or hf-hub:ORG/NAME.")
@click.option("--opset", type=int, help="ONNX opset, 17 to 20; 18 by default.")
@max_batch_option
@coreml_target_option
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
    opset: int | None,
    max_batch: int | None,
    coreml_target: str | None,
    measuring: Measuring,
    force: bool,
    keep_going: bool,
    allow_below_gate: bool,
    **reading: Any,
) -> None:
    """Export the CLIP checkpoint SOURCE into a bundle.

    SOURCE is a file, a folder or hf-hub:ORG/NAME[@REVISION], of OpenAI, OpenCLIP, Hugging Face or edgeclip. Each
    artifact is run and compared with the fp32 model; the bundle is written when every one is within its bounds. A
    bundle of the same checkpoint that is there already is added to. SOURCE may be a bundle, too: artifacts are made
    from the ONNX in it, and written with all that it holds.
    """
    wanted, kinds = asked_targets(targets), asked_precisions(precisions)
    rows, system = asked_batch(max_batch, wanted), asked_system(coreml_target, wanted)
    path = path or default_output(source)
    bundle = opened_bundle(source, {"opset": opset, **reading})
    publish.check_output(path, replace=bundle is None or force or path.resolve() == bundle.path.resolve())
    measuring.check(kinds, learned=(Path(source) / SCALES).is_file())
    need_export()
    if not keep_going:
        need_toolchains(wanted)
    started = time.perf_counter()
    with progress.steps(output) as begin:
        begin("loading PyTorch")
        from edgeclip.export.pipeline import plan

        jobs = plan(wanted, kinds, towers_of(bundle, tower), rows, system)
        how = {"force": force, "keep_going": keep_going, "allow_below_gate": allow_below_gate}
        if bundle is None:
            outcomes = from_checkpoint(output, source, path, jobs, measuring, begin, opset, reading, how)
        else:
            outcomes = from_bundle(output, bundle, path, jobs, measuring, begin, how)
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


def asked_system(value: str | None, targets: Sequence[Target]) -> str | None:
    """What `--coreml-target` says.

    Raises:
        UsageError: nothing is made for Core ML, or there is no such system.
    """
    if value is None:
        return None
    if "coreml" not in targets:
        raise UsageError("--coreml-target is for target coreml")
    from edgeclip.quantize.deployment import check

    check(value)
    return value


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


def opened_bundle(source: str, reading: dict[str, Any]) -> Bundle | None:
    """The bundle that SOURCE is; None where it is a checkpoint.

    Raises:
        UsageError: options that only a checkpoint can follow.
    """
    from edgeclip.cli.inspect import is_bundle

    if not Path(source).exists() or not is_bundle(source):
        return None
    if given := [name for name, value in reading.items() if value]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names}: only for checkpoints, and {source} is a bundle")
    return Bundle.open(Path(source))


def towers_of(bundle: Bundle | None, tower: Literal["image", "text", "both"]) -> Tower | None:
    """The one tower that is to be exported; None for both."""
    if tower != "both":
        return tower
    held = {artifact.tower for artifact in bundle.manifest.artifacts} if bundle else set()
    return held.pop() if len(held) == 1 else None


def from_checkpoint(
    output: Output,
    source: str,
    path: Path,
    jobs: Sequence[Job],
    measuring: Measuring,
    begin: Progress,
    opset: int | None,
    reading: dict[str, Any],
    how: dict[str, bool],
) -> list[Outcome]:
    """Read the checkpoint and export it."""
    from edgeclip.export.pipeline import export
    from edgeclip.export.to_onnx import DEFAULT_OPSET

    begin("reading the checkpoint")
    opened = open_checkpoint(source, **reading)
    tokenizer = partial(Tokenizer, opened.tokenizer, opened.tokenizer_spec)
    settings = measuring.settings(output, opened.preprocess, tokenizer, begin)
    opset = DEFAULT_OPSET if opset is None else opset
    return export(opened, path, jobs, opset=opset, settings=settings, progress=begin, **how)


def from_bundle(
    output: Output,
    bundle: Bundle,
    path: Path,
    jobs: Sequence[Job],
    measuring: Measuring,
    begin: Progress,
    how: dict[str, bool],
) -> list[Outcome]:
    """Export from what the bundle holds."""
    from edgeclip.export.from_bundle import export_bundle
    from edgeclip.quantize.bundled import tokenizer_of

    if not how["force"]:
        refuse_existing(bundle, jobs, bundle.path)
    settings = measuring.settings(output, bundle.manifest.preprocess, partial(tokenizer_of, bundle), begin)
    return export_bundle(bundle, jobs, settings, output=path, progress=begin, **how)


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
    bundle = Bundle.open(path)
    size = sum(entry.size for entry in bundle.manifest.files)
    output.document |= {"digest": bundle.digest, "bundle_bytes": size}
    output.line(f"{path}: {megabytes(size)} MB, {bundle.digest}, in {seconds:.1f} s")
