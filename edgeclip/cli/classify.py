"""`edgeclip classify`: zero-shot classification of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip import __version__, templates
from edgeclip.cli import progress, sources
from edgeclip.cli.embed import OnError
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import Engine, bundle_argument, engine_options, stream_options
from edgeclip.cli.output import Output
from edgeclip.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgeclip.model import Model
    from edgeclip.pixels import Skipped
    from edgeclip.zeroshot import Prediction

RANDOM = "The weights are random: labels and probabilities mean nothing; agreement and speed do."


@dataclass(frozen=True)
class Classified:
    """The likeliest labels of one image."""

    source: str
    predictions: list[Prediction]


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip classify b32.edgeclip photo.jpg --labels cat,dog",
        "edgeclip classify b32.edgeclip photos/ --labels-file classes.txt --templates general --top-k 3",
        'edgeclip classify b32.edgeclip x.png --labels 3,8 --template "a photo of the number: \\"{}\\"." --json',
    ),
)
@bundle_argument
@click.argument("images", nargs=-1, required=True)
@click.option("--labels", help="Names of the classes, with commas.")
@click.option("--labels-file", metavar="FILE", help="A file of names, one a line; - reads standard input.")
@click.option("--template", "prompts", multiple=True, help="A prompt with {} for the label; several are averaged.")
@click.option(
    "--templates", "named", type=click.Choice(list(templates.NAMED)), help="A set of prompts; photo by default."
)
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Labels to show.")
@stream_options
@engine_options
@click.pass_obj
def command(
    output: Output,
    bundle: Path,
    images: tuple[str, ...],
    labels: str | None,
    labels_file: str | None,
    prompts: tuple[str, ...],
    named: str | None,
    top_k: int,
    batch_size: int | None,
    on_error: OnError,
    engine: Engine,
) -> None:
    """Say which of some labels fit IMAGES best, with BUNDLE.

    IMAGES are files, folders (searched recursively), or - for paths on standard input. A probability is the share among
    the labels that are given.
    """
    chosen = choose_labels(labels, labels_file)
    wording = choose_templates(prompts, named)
    paths = sources.images(images, missing_ok=on_error == "skip")
    with engine.load(bundle, tuned=True) as model, progress.bar(output, "classifying", len(paths)) as advance:
        found, skipped = classify(model, paths, chosen, wording, top_k, batch_size, on_error, advance)
        output.document["provenance"] = {**model.info.provenance(), "edgeclip": __version__}
    if not found:
        raise InputError(f"none of {len(paths)} images can be read: {skipped[0].reason}")
    show(output, found, skipped, random_weights=model.info.random_weights)


def choose_labels(named: str | None, file: str | None) -> list[str]:
    """The labels of `--labels` or `--labels-file`.

    Raises:
        UsageError: neither, both, or no label in it.
    """
    if (named is None) == (file is None):
        raise UsageError("give either --labels or --labels-file", hint="--labels cat,dog")
    given = named.split(",") if named is not None else sources.lines(file or "")
    labels = [label.strip() for label in given if label.strip()]
    if not labels:
        raise UsageError("there is no label")
    return labels


def choose_templates(prompts: Sequence[str], named: str | None) -> tuple[str, ...]:
    """The prompts of `--template` or `--templates`.

    Raises:
        UsageError: both.
    """
    if prompts and named:
        raise UsageError("give either --template or --templates")
    return tuple(prompts) or templates.NAMED[named or "photo"]


def classify(
    model: Model,
    paths: list[str],
    labels: Sequence[str],
    wording: Sequence[str],
    top_k: int,
    batch_size: int | None,
    on_error: OnError,
    advance: progress.Advance,
) -> tuple[list[Classified], list[Skipped]]:
    """Classify a stream of images, batch by batch."""
    from edgeclip.zeroshot import softmax

    classifier = model.classifier(labels, wording)
    found: list[Classified] = []
    skipped: list[Skipped] = []
    for batch in model.stream_image(paths, batch_size=batch_size, on_error=on_error):
        rows = softmax(classifier.logits(batch.embeddings)) if batch.indices else batch.embeddings
        for index, row in zip(batch.indices, rows, strict=True):
            found.append(Classified(paths[index], classifier.rank(row, top_k)))
        skipped += batch.skipped
        advance(len(batch.indices) + len(batch.skipped))
    return found, skipped


def show(output: Output, found: Sequence[Classified], skipped: Sequence[Skipped], *, random_weights: bool) -> None:
    """Print the labels of each image."""
    document: dict[str, Any] = {"images": found, "skipped": skipped, "random_weights": random_weights}
    output.document |= document
    rows = [
        [one.source if rank == 0 else "", best.label, f"{best.probability:.4f}"]
        for one in found
        for rank, best in enumerate(one.predictions)
    ]
    output.table("", ("image", "label", "probability"), rows)
    for one in skipped:
        output.note(f"skipped: {one.source}: {one.reason}")
    if random_weights:
        output.note(RANDOM)
