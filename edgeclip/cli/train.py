"""`edgeclip train`: a CLIP model from a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output

if TYPE_CHECKING:
    from edgeclip.train.loop import Run
    from edgeclip.train.recipe import Recipe


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, KEY=VALUE … and --resume."""
    function = click.option("--resume", is_flag=True, help="Go on from the newest state of the run.")(function)
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe")(function)


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip train smoke data.root=/data/train",
        "edgeclip train my.toml loop.batch_size=256 optimizer.lr=5e-4",
        "edgeclip train my.toml --resume",
        "torchrun --nproc-per-node 8 -m edgeclip train my.toml",
    ),
)
@recipe_options
@click.pass_obj
def command(output: Output, recipe: str, overrides: tuple[str, ...], resume: bool) -> None:
    """Train the model that RECIPE, a TOML file, describes, and write its checkpoint, which `edgeclip export` takes.

    RECIPE may be the name of one that edgeclip brings. KEY=VALUE replaces a value of it, as optimizer.lr=1e-3. An
    interrupted run goes on with --resume as if nothing had happened.
    """
    need_train()
    from edgeclip.train.recipe import read_recipe

    train(output, read_recipe(recipe, overrides), resume=resume)


def need_train() -> None:
    """`need` for everything that trains."""
    need("torch", "webdataset", extra="train", what="training")


def train(output: Output, recipe: Recipe, *, resume: bool) -> None:
    """Run the recipe to its end and show what came out."""
    from edgeclip.train.loop import start

    began = time.perf_counter()
    output.quiet = output.quiet or os.environ.get("RANK", "0") != "0"
    with progress.steps(output) as begin:
        preparing = start(recipe, resume=resume, begin=begin)
        run = preparing.__enter__()
    try:
        last = _train(output, run)
    except BaseException as exc:
        if not preparing.__exit__(type(exc), exc, exc.__traceback__):
            raise
    else:
        preparing.__exit__(None, None, None)
        if run.world.first:
            show(output, run, last, time.perf_counter() - began)


def _train(output: Output, run: Run) -> dict[str, Any]:
    last: dict[str, Any] = {}
    with progress.steps(output, run.steps) as begin:

        def on_step(step: int, values: dict[str, Any]) -> None:
            last.update(values)
            begin(f"loss {values['loss']:.3f}, {values['images_per_s']:.0f} images/s")

        run.train(on_step)
    return last


def show(output: Output, run: Run, last: dict[str, Any], seconds: float) -> None:
    """Print where the checkpoint is and how good it was."""
    output.document |= {
        "checkpoint": str(run.checkpoint),
        "steps": run.steps,
        "recipe_sha256": run.recipe.digest,
        "last": last,
        "scores": run.scores,
        "elapsed_s": round(seconds, 3),
    }
    if run.scores:
        rows = [[s.data, s.metric, f"{s.value:.1%}", f"{s.low:.1%} to {s.high:.1%}", str(s.n)] for s in run.scores]
        output.table("Evaluation", ("data", "metric", "value", "95 % interval", "images"), rows)
    output.line(f"{run.checkpoint}: {run.steps} steps in {seconds:.0f} s{_loss(last)}")


def _loss(last: dict[str, Any]) -> str:
    return f", last loss {last['loss']:.4f}" if last else ""
