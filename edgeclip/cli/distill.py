"""`edgeclip distill`: a small CLIP model that learns from larger ones."""

from __future__ import annotations

import click

from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.cli.train import need_train, recipe_options, train
from edgeclip.errors import UsageError


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip distill student data.root=/data/train 'distill.teacher=[\"runs/teacher/checkpoint\"]'",
        "edgeclip distill my.toml --resume",
    ),
)
@recipe_options
@click.pass_obj
def command(output: Output, recipe: str, overrides: tuple[str, ...], resume: bool) -> None:
    """Train the model that RECIPE describes with the teachers of its [distill] table.

    As `edgeclip train`, which does the same for a recipe with that table, but refuses one without it.
    """
    need_train()
    from edgeclip.train.recipe import read_recipe

    read = read_recipe(recipe, overrides)
    if read.distill is None:
        raise UsageError(f"{recipe}: has no [distill] table", hint="add one, or use edgeclip train")
    train(output, read, resume=resume)
