"""`edgeclip reinforce`: store what a teacher says of the data."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.cli.train import need_train


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip reinforce student --teacher runs/teacher/checkpoint -o stores/teacher data.root=/data/train",
        "edgeclip reinforce my.toml --teacher ./clip-vit-base-patch32 -o stores/b32 --variants 8",
    ),
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--teacher", required=True, type=click.Path(path_type=Path), help="Its checkpoint.")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="The store.")
@click.option("--variants", type=click.IntRange(1, 1000), default=4, show_default=True, help="Views of each sample.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the views.")
@click.pass_obj
def command(
    output: Output, recipe: str, overrides: tuple[str, ...], teacher: Path, folder: Path, variants: int, seed: int
) -> None:
    """Store a teacher's embeddings of the data of RECIPE, so that it need not run while a student learns.

    Name the folder in the recipe's [distill] stored. Every sample is seen in --variants views, which the student will
    see too. Several teachers have a folder each, with the same seed. An interrupted call goes on when it is repeated.
    """
    need_train()
    began = time.perf_counter()
    with progress.steps(output) as begin:
        begin("loading PyTorch")
        from edgeclip.train.distributed import join
        from edgeclip.train.recipe import read_recipe
        from edgeclip.train.reinforce import reinforce

        read = read_recipe(recipe, overrides)
        done = 0

        def embedded(shard: str, count: int) -> None:
            nonlocal done
            done += count
            begin(f"{shard}: {done} samples")

        with join(read.loop.device) as world:
            store = reinforce(teacher, read, folder, variants=variants, seed=seed, world=world, progress=embedded)
    seconds = time.perf_counter() - began
    output.document |= {
        "store": str(folder),
        "samples": len(store),
        "variants": store.variants,
        "dim": store.dim,
        "elapsed_s": round(seconds, 3),
    }
    output.line(f"{folder}: {len(store)} samples in {store.variants} views each, in {seconds:.0f} s")
