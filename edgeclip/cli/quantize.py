"""`edgeclip quantize`: integer artifacts for a bundle that exists."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Literal

import click

from edgeclip import publish
from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.export import asked_batch, asked_precisions, asked_targets, conclude, show
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import bundle_argument, max_batch_option, need_toolchains
from edgeclip.cli.output import Output
from edgeclip.cli.quantizing import Measuring, quantize_options, show_budgets
from edgeclip.outcome import jobs_of, publishable, raise_if_failed, refuse_existing


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip quantize b32.edgeclip --target openvino --precision w8a8 --calib a.csv --eval val/ --max-drop 0.5",
        "edgeclip quantize b32.edgeclip --target onnx,openvino --precision w8a16",
        "edgeclip quantize b32.edgeclip --target tensorrt --precision w8a8 --calib shards/ --eval wds_cifar10/",
    ),
)
@bundle_argument
@click.option("--target", "targets", multiple=True, help="onnx, openvino, tensorrt, coreml; several with commas.")
@click.option(
    "--precision", "precisions", multiple=True, help="w8a8 (or int8), w8a16, w6a16, w4a16; several with commas."
)
@click.option("--tower", type=click.Choice(["image", "text", "both"]), default="both", show_default=True)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="Another bundle; BUNDLE by default.")
@max_batch_option
@quantize_options
@click.option("--force", is_flag=True, help="Replace artifacts that are there; with -o, the whole of a bundle there.")
@click.option("--keep-going", is_flag=True, help="Publish what passed although something else failed.")
@click.option("--allow-below-gate", is_flag=True, help="Publish what broke a bound or the budget; the bundle says so.")
@click.pass_obj
def command(
    output: Output,
    /,
    bundle: Path,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    tower: Literal["image", "text", "both"],
    path: Path | None,
    max_batch: int | None,
    measuring: Measuring,
    force: bool,
    keep_going: bool,
    allow_below_gate: bool,
) -> None:
    """Add integer artifacts to BUNDLE, from the floating-point ONNX in it; for Core ML from its fp16 packages, too.

    What is lost is measured, and with --max-drop it is bounded: layers go back to floating point, the most sensitive
    first, until the 95 % bound of the loss fits. What does not fit is not published.
    """
    wanted, kinds = asked_targets(targets), asked_precisions(precisions)
    rows = asked_batch(max_batch, wanted)
    opened = Bundle.open(bundle)
    path = path or bundle
    publish.check_output(path, replace=path == bundle or force)
    measuring.check(kinds)
    if not keep_going:
        need_toolchains(wanted)
    started = time.perf_counter()
    with progress.steps(output) as begin:
        from edgeclip.quantize import scheme
        from edgeclip.quantize.bundled import quantize_bundle, tokenizer_of

        towers = sorted({a.tower for a in opened.manifest.artifacts}) if tower == "both" else [tower]
        jobs = jobs_of(wanted, kinds, towers, rows)
        for job in jobs:
            scheme.check(job.target, job.precision)
        if not force:
            refuse_existing(opened, jobs, bundle)
        settings = measuring.settings(output, opened.manifest.preprocess, partial(tokenizer_of, opened), begin)
        outcomes = quantize_bundle(
            opened,
            jobs,
            settings,
            output=path,
            force=force,
            keep_going=keep_going,
            allow_below_gate=allow_below_gate,
            progress=begin,
        )
    show(output, outcomes)
    show_budgets(output, outcomes)
    written = bool(publishable(outcomes, keep_going=keep_going, allow_below_gate=allow_below_gate))
    conclude(output, path, written, time.perf_counter() - started)
    raise_if_failed(outcomes, allow_below_gate=allow_below_gate)
