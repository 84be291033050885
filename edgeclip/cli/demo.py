"""`edgeclip demo`: the built-in model at work on photographs, and how good it was measured to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip import __version__
from edgeclip.cli import cards, photographs, progress
from edgeclip.cli import verify as verifying
from edgeclip.cli.classify import RANDOM, Classified
from edgeclip.cli.clock import Clock
from edgeclip.cli.group import Command, examples
from edgeclip.cli.hashing import hash_files
from edgeclip.cli.options import Engine
from edgeclip.cli.output import Output
from edgeclip.cli.photographs import Photographs
from edgeclip.errors import BundleNotFoundError, InputError, UsageError

if TYPE_CHECKING:
    from edgeclip.backends.base import Embeddings
    from edgeclip.model import Model
    from edgeclip.pixels import Skipped

LABELS = (
    *("a cat", "a dog", "a flower", "a cup of coffee", "a motorcycle", "a rocket", "an astronaut"),
    *("coins", "a temple", "grass", "a brick wall", "a man with a camera"),
)
"""What is on the photographs that packages carry, and a dog, which is on none."""
TEMPLATES = ("a photo of {}.",)
QUERIES = (
    "the face of an animal",
    "something to drink on a table",
    "a woman in a space suit",
    "a launch pad at night",
    "a building by the water",
    "a vehicle with two wheels",
)
TOP = 3
SHOWN = 20
"""Photographs in the table."""


@dataclass(frozen=True)
class Found:
    """A photograph that a query found."""

    source: str
    cosine: float


@dataclass
class Seen:
    """What the model made of the photographs."""

    names: list[str] = field(default_factory=list)
    labels: list[Classified] = field(default_factory=list)
    searches: dict[str, list[Found]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip demo",
        "edgeclip demo --photographs ~/Pictures --labels 'a beach,a party,a dog' --query 'children in the snow'",
        "edgeclip demo --model b32.edgeclip --json",
        "edgeclip demo --export --tokenizer bpe_simple_vocab_16e6.txt.gz --out demo/",
    ),
)
@click.option("--model", type=click.Path(path_type=Path), help="A bundle; the built-in model by default.")
@click.option(
    "--photographs",
    "folder",
    type=click.Path(path_type=Path),
    help="A folder, searched recursively; what installed packages carry by default.",
)
@click.option("--labels", help="Names of the classes, with commas.")
@click.option("--query", "queries", multiple=True, help="A text to search the photographs with; may be given again.")
@click.option("--export", "exporting", is_flag=True, help="Export a model with random weights instead, and run that.")
@click.option("--tokenizer", help="With --export: tokenizer.json, or OpenAI's merges; that of open_clip by default.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --export: keep the checkpoint and bundle here.",
)
@click.pass_obj
def command(
    output: Output,
    model: Path | None,
    folder: Path | None,
    labels: str | None,
    queries: tuple[str, ...],
    exporting: bool,
    tokenizer: str | None,
    out: Path | None,
) -> None:
    """Verify the built-in model, classify and search photographs with it, and show how good and how fast it is.

    Nothing is downloaded, and PyTorch is not needed. With --export: make a ViT-B/32 with random weights, export it,
    verify and time it on every backend; needs PyTorch, about a minute and 2 GB of disk.
    """
    _check_options(
        exporting,
        {"--tokenizer": tokenizer, "--out": out},
        {"--model": model, "--photographs": folder, "--labels": labels, "--query": queries},
    )
    if exporting:
        from edgeclip.cli.demo_export import export_demo

        export_demo(output, tokenizer, out)
        return
    chosen = photographs.in_folder(folder) if folder is not None else photographs.carried()
    run(output, model, chosen, _listed(labels) or LABELS, queries or QUERIES)


def run(output: Output, path: Path | None, chosen: Photographs, labels: Sequence[str], queries: Sequence[str]) -> None:
    """All steps; prints each as it is done.

    Raises:
        BundleNotFoundError: there is no built-in model.
        ParityError: this device does not compute what the bundle's makers measured.
        InputError: none of the photographs can be read.
    """
    clock = Clock()
    with clock.step("load"):
        model = _load(path)
    with model:
        output.document |= {"provenance": {**model.info.provenance(), "edgeclip": __version__}}
        engine = f"{model.info.backend} {model.info.engine_version}, {model.info.precision} in {model.info.compute}"
        output.line(f"{model.info.name} on {engine}, {model.info.threads} threads, {model.info.device}")
        output.line("")
        with clock.step("verify"):
            verify(output, model)
        seen = look(output, model, chosen, labels, queries, clock)
        show(output, seen, chosen.others)
        show_card(output, model)
        show_time(output, clock, len(seen.names))
        if model.info.random_weights:
            output.line(RANDOM)


def verify(output: Output, model: Model) -> None:
    """Hash every file of the bundle, and run the golden vectors.

    Raises:
        BundleIntegrityError: a file differs from the manifest.
        ParityError: the engine does not reproduce the reference.
    """
    from edgeclip.verify import verify as run_golden

    count = hash_files(output, model.bundle)
    output.document |= {"digest": model.bundle.digest, "files_hashed": count}
    with progress.steps(output) as begin:
        begin("golden vectors")
        engine = Engine(model.info.backend, model.info.precision)
        runs = [verifying.Run(verifying.Plan(engine, None), run_golden(model))]
    verifying.show(output, runs)
    output.line(f"{count} files hashed; {model.bundle.digest}")
    output.line("")
    verifying.raise_if_failed(runs)


def look(
    output: Output, model: Model, chosen: Photographs, labels: Sequence[str], queries: Sequence[str], clock: Clock
) -> Seen:
    """Embed every photograph once; classify and search with the embeddings."""
    from edgeclip.zeroshot import softmax

    seen = Seen()
    with clock.step("embed photographs"):
        images = _embed(output, model, chosen, seen)
    with clock.step("embed labels and queries"):
        classifier = model.classifier(labels, TEMPLATES)
        texts = model.encode_text(queries)
    rows = softmax(classifier.logits(images))
    seen.labels = [Classified(n, classifier.rank(row, TOP)) for n, row in zip(seen.names, rows, strict=True)]
    for query, cosines in zip(queries, texts @ images.T, strict=True):
        best = (-cosines).argsort(kind="stable")[:TOP]
        seen.searches[query] = [Found(seen.names[i], round(float(cosines[i]), 4)) for i in best]
    return seen


def show(output: Output, seen: Seen, others: int) -> None:
    """Print labels and searches."""
    output.document |= {
        "photographs": seen.labels,
        "searches": seen.searches,
        "skipped": seen.skipped,
        "other_files": others,
    }
    ranks = ("1st", "2nd", "3rd")
    rows = [[one.source, *_cells([(p.label, p.probability) for p in one.predictions])] for one in seen.labels]
    output.table("Labels, with their probabilities", ("photograph", *ranks), rows[:SHOWN])
    if len(rows) > SHOWN:
        output.line(f"... and {len(rows) - SHOWN} more: --json has all")
        output.line("")
    found = [[query, *_cells([(f.source, f.cosine) for f in some])] for query, some in seen.searches.items()]
    output.table("Search, with cosines", ("query", *ranks), found)
    if others:
        output.note(f"left out, since they are no images: {others} files")
    if seen.skipped:
        output.note(
            f"skipped, since they cannot be read: {len(seen.skipped)} images, the first for {seen.skipped[0].reason}"
        )


def show_card(output: Output, model: Model) -> None:
    """Print the bundle's accuracy card, if it has one."""
    from edgeclip.card import read_card

    card = read_card(model.bundle)
    if card is None:
        output.document["card"] = None
        output.line("This bundle carries no accuracy card.")
        output.line("")
        return
    cards.show(output, card, stale=card.is_stale(model.bundle.manifest))


def show_time(output: Output, clock: Clock, count: int) -> None:
    """Print the seconds of each step, and photographs a second, decoding included."""
    rate = count / clock.seconds["embed photographs"]
    output.document |= {"seconds": clock.rounded(), "images_per_s": round(rate, 1)}
    facts = {name: f"{seconds:.2f} s" for name, seconds in clock.seconds.items()}
    facts["embed photographs"] += f", {count} in all, {rate:.0f} images/s from files"
    output.facts("Time", facts)


def _load(path: Path | None) -> Model:
    from edgeclip.loading import load

    try:
        return load(path, tuned=False)
    except BundleNotFoundError as exc:
        if path is not None:
            raise
        raise BundleNotFoundError(
            exc.message, hint="edgeclip demo --model BUNDLE runs another, edgeclip demo --export makes one"
        ) from exc


def _embed(output: Output, model: Model, chosen: Photographs, seen: Seen) -> Embeddings:
    """[N, D] of the photographs that can be read; `seen` gets their names, and those that cannot be."""
    import numpy as np

    rows = []
    with progress.bar(output, "photographs", len(chosen.paths)) as advance:
        for batch in model.stream_image(chosen.paths, on_error="skip"):
            rows.append(batch.embeddings)
            seen.names += [chosen.names[i] for i in batch.indices]
            seen.skipped += batch.skipped
            advance(len(batch.indices) + len(batch.skipped))
    if not seen.names:
        raise InputError(f"none of {len(chosen.paths)} images can be read: {seen.skipped[0].reason}")
    return np.concatenate(rows)


def _cells(ranked: Sequence[tuple[str, float]]) -> list[str]:
    """One cell a rank, empty where there are fewer."""
    cells = [f"{name} {value:.2f}" for name, value in ranked]
    return cells + [""] * (TOP - len(cells))


def _listed(labels: str | None) -> list[str]:
    return [label.strip() for label in (labels or "").split(",") if label.strip()]


def _check_options(exporting: bool, of_export: dict[str, Any], of_model: dict[str, Any]) -> None:
    """
    Raises:
        UsageError: an option of one way with the other.
    """
    for name, value in (of_model if exporting else of_export).items():
        if value:
            raise UsageError(f"{name} {'and --export exclude each other' if exporting else 'needs --export'}")
