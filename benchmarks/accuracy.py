"""How good a bundle is on test sets, through the runtime: `python -m edgeclip.benchmarks.accuracy B --data DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from edgeclip import scores, zeroshot
from edgeclip.benchmarks.embedded_images import embed_set
from edgeclip.card import Card, Cost, make_card, with_card
from edgeclip.cli import cards, machine, progress
from edgeclip.cli.clock import median_ms
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import Engine, bundle_argument, engine_options
from edgeclip.cli.output import Output
from edgeclip.errors import DataError, UsageError
from edgeclip.manifest import Artifact
from edgeclip.scores import Score
from edgeclip.testset import TestSet, choose_test_sets, count_samples, open_test_set

if TYPE_CHECKING:
    from edgeclip.model import Model

NOTE_LENGTH = 200
"""What a card takes."""
CALLS = 50
"""Timed calls of each tower, of which the median counts."""
WARM_UP = 5


@click.command(
    "accuracy",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.accuracy b32.edgeclip --data eval/",
        "python -m edgeclip.benchmarks.accuracy b32.edgeclip --data eval/ --sets wds_cifar10,wds_flickr8k --limit 500",
        'python -m edgeclip.benchmarks.accuracy b32.edgeclip --data eval/ --note "wds_x=seen in training" --embed',
    ),
)
@bundle_argument
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A folder of test sets.")
@click.option("--sets", help="Names of test sets, with commas; all that the folder has.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Images of each set; 0: all.")
@click.option("--note", "noted", multiple=True, metavar="SET=TEXT", help="What a reader must know of a set.")
@click.option("--cost", "timed", is_flag=True, help="Measure size and speed, too; nothing else should run meanwhile.")
@click.option("--embed", is_flag=True, help="Put the card into the bundle.")
@engine_options
@click.pass_obj
def command(
    output: Output,
    bundle: Path,
    data: Path,
    sets: str | None,
    limit: int,
    noted: tuple[str, ...],
    timed: bool,
    embed: bool,
    engine: Engine,
) -> None:
    """Score BUNDLE on test sets in CLIP_benchmark's layout: zero-shot top-1, and retrieval both ways.

    Prompts are the sets' own; those of a class are averaged in embedding space.
    """
    names = choose_test_sets(data, [name.strip() for name in (sets or "").split(",") if name.strip()])
    notes = parse_notes(noted, names)
    if embed and limit:
        raise UsageError("--embed with --limit", hint="a card speaks of whole test sets")
    with engine.load(bundle) as model:
        if len(model.info.artifacts) < 2:
            raise UsageError(f"{bundle}: scoring needs both towers, and one is missing")
        found = evaluate(output, model, [open_test_set(data / name, limit=limit) for name in names])
        cost = measure_cost(model) if timed else None
        card = card_of(model, found, notes, cost)
        opened = model.bundle
    output.document["bundle"] = opened.digest
    cards.show(output, card, stale=False)
    if embed:
        changed = with_card(opened, card)
        output.document["bundle"] = changed.digest
        output.line(f"put into {bundle}; {changed.digest}")


def parse_notes(noted: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """`SET=TEXT` by set.

    Raises:
        UsageError: one has no text or too much, or is of no set that is scored.
    """
    notes = {}
    for one in noted:
        name, _, text = one.partition("=")
        if not text.strip():
            raise UsageError(f"--note {one!r} is not SET=TEXT")
        if name not in names:
            raise UsageError(f"--note of {name!r}, which is not scored", hint=f"scored: {', '.join(names)}")
        if len(text.strip()) > NOTE_LENGTH:
            raise UsageError(f"--note of {name!r} has {len(text.strip())} characters, the limit is {NOTE_LENGTH}")
        notes[name] = text.strip()
    return notes


def evaluate(output: Output, model: Model, sets: Sequence[TestSet]) -> list[Score]:
    """Scores of a model on test sets, with a progress bar.

    Raises:
        DataError: a test set is damaged.
        ImageDecodeError: an image cannot be decoded.
    """
    total = sum(count_samples(data.folder, data.limit) for data in sets)
    with progress.bar(output, "scoring", total) as advance:
        return [score for data in sets for score in score_set(model, data, advance)]


def score_set(model: Model, data: TestSet, advance: progress.Advance = lambda amount: None) -> list[Score]:
    """Scores of a model on one test set.

    Raises:
        DataError: it is damaged, or several classes may apply to an image.
    """
    if data.is_multilabel:
        raise DataError(f"{data.name}: several classes may apply to an image", hint="edgeclip eval scores such sets")
    embedded = embed_set(model, data, advance)
    if data.is_retrieval:
        return scores.retrieval(data.name, embedded.images, model.encode_text(embedded.captions), embedded.owners)
    prompts = model.encode_text(zeroshot.prompts(data.classes, data.templates, repeats=True))
    weights = zeroshot.ensemble(prompts, len(data.classes))
    return [scores.top1(data.name, embedded.images, weights, embedded.labels)]


def measure_cost(model: Model) -> Cost:
    """Size of the artifacts that run, and the median time of one image and of one text."""
    size = model.bundle.manifest.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    sizes = {entry.path: entry.size for entry in model.bundle.manifest.files}
    return Cost(
        size_bytes=sum(sizes[name] for artifact in _artifacts(model) for name in artifact.files),
        image_ms=round(median_ms(lambda: model.encode_pixels(pixels), CALLS, warm_up=WARM_UP), 3),
        text_ms=round(median_ms(lambda: model.encode_text("a photo of a cat on a sofa"), CALLS, warm_up=WARM_UP), 3),
        cpu=machine.cpu_model(),
        threads=model.info.threads,
    )


def card_of(model: Model, found: Sequence[Score], notes: dict[str, str], cost: Cost | None = None) -> Card:
    """The card of what was measured with a model that is loaded."""
    return make_card(
        model.bundle.manifest,
        _artifacts(model),
        found,
        backend=f"{model.info.backend} {model.info.engine_version}",
        compute=model.info.compute,
        notes=notes,
        cost=cost,
    )


def _artifacts(model: Model) -> list[Artifact]:
    """Those that run."""
    files = set(model.info.artifacts.values())
    return [artifact for artifact in model.bundle.manifest.artifacts if artifact.file in files]


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.accuracy"))
