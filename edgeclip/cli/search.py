"""`edgeclip search`: the photographs of a folder that texts describe, or that other pictures resemble."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeclip import __version__
from edgeclip.cli import progress
from edgeclip.cli.classify import RANDOM
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import Engine, engine_options, need
from edgeclip.cli.output import Output
from edgeclip.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgeclip.backends.base import Embeddings
    from edgeclip.model import Model
    from edgeclip.photoindex import Match, PhotoIndex, Update

NAMED = 20
"""Unreadable pictures that are named one by one; --json has all."""


@dataclass(frozen=True)
class Ranked:
    """A picture that a query found."""

    rank: int
    cosine: float
    path: str


@dataclass(frozen=True)
class Result:
    """What one query found, best first."""

    kind: Literal["text", "image"]
    query: str
    """The text, or the picture's path."""
    matches: list[Ranked]


@click.command(
    cls=Command,
    epilog=examples(
        'edgeclip search photos/ "a dog on a beach"',
        'edgeclip search photos/ "a red bicycle" "a blue bicycle" --model b32.edgeclip --top 5',
        'edgeclip search photos/ "children in the snow" --html found.html',
        "edgeclip search photos/ --like cat.jpg --json",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--like", "pictures", multiple=True, metavar="PICTURE", help="Search by a picture; may be given again.")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle; the built-in model by default.")
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Pictures to show of each query."
)
@click.option("--html", "sheet", type=click.Path(path_type=Path), help="Write a contact sheet, one file, too.")
@click.option("--index", type=click.Path(path_type=Path), help="The index's file; in the cache directory by default.")
@click.option("--reindex", is_flag=True, help="Make the index anew.")
@engine_options
@click.pass_obj
def command(
    output: Output,
    folder: Path,
    texts: tuple[str, ...],
    pictures: tuple[str, ...],
    model: Path | None,
    top: int,
    sheet: Path | None,
    index: Path | None,
    reindex: bool,
    engine: Engine,
) -> None:
    """Find the photographs of FOLDER, and of the folders in it, that TEXTS describe.

    They are embedded once, and kept in an index: later searches embed only what is new or has changed. A run that is
    interrupted goes on where it stopped. Cosines are to be compared within one query.
    """
    if not texts and not pictures:
        raise UsageError("nothing to search for", hint="give a text, or --like PICTURE")
    if sheet is not None:
        _check_sheet(sheet, (len(texts) + len(pictures)) * top)
    from edgeclip.photoindex import open_index

    with (
        engine.load(model, None if texts else "image", tuned=True) as loaded,
        open_index(folder, loaded, path=index, reindex=reindex) as opened,
    ):
        queries = _embed(loaded, texts, pictures)
        done = _update(output, opened)
        if not len(opened):
            left_out = opened.unreadable()
            raise InputError(f"none of {len(left_out)} pictures can be read: {left_out[0].reason}")
        names: list[tuple[Literal["text", "image"], str]] = [
            *(("text", text) for text in texts),
            *(("image", picture) for picture in pictures),
        ]
        found = opened.search(queries, top)
        results = [Result(*name, _ranked(matches)) for name, matches in zip(names, found, strict=True)]
        _describe(output, loaded, opened, done, results)
        _show(output, results)
        if sheet is not None:
            _write_sheet(output, sheet, opened, results)
        if loaded.info.random_weights:
            output.note(RANDOM)


def _check_sheet(path: Path, count: int) -> None:
    """
    Raises:
        UsageError: there is no place for the file, or more pictures than a sheet holds.
        TargetUnavailableError: Jinja2 is missing.
    """
    from edgeclip.cli.contactsheet import MAX_PICTURES
    from edgeclip.cli.writers import check_place

    need("jinja2", extra="search", what="a contact sheet")
    check_place(path, ".html")
    if count > MAX_PICTURES:
        raise UsageError(
            f"a contact sheet holds {MAX_PICTURES} pictures, and there would be {count}", hint="use a smaller --top"
        )


def _embed(model: Model, texts: Sequence[str], pictures: Sequence[str]) -> Embeddings:
    """The queries, [Q, D]: texts first."""
    import numpy as np

    rows = [model.encode_text(texts)] if texts else []
    return np.concatenate([*rows, model.encode_image(pictures)]) if pictures else rows[0]


def _update(output: Output, index: PhotoIndex) -> Update:
    with ExitStack() as bars:

        def start(label: str, total: int) -> progress.Advance:
            bars.close()
            return bars.enter_context(progress.bar(output, label, total))

        return index.update(start=start)


def _ranked(matches: Sequence[Match]) -> list[Ranked]:
    return [Ranked(i, round(one.cosine, 6), one.path) for i, one in enumerate(matches, 1)]


def _describe(output: Output, model: Model, index: PhotoIndex, done: Update, results: Sequence[Result]) -> None:
    """Fill in the document, and say what the update did."""
    unreadable = index.unreadable()
    output.document |= {
        "provenance": {**model.info.provenance(), "edgeclip": __version__},
        "random_weights": model.info.random_weights,
        "index": {
            "folder": str(index.folder),
            "path": str(index.path) if index.path is not None else None,
            "pictures": len(index),
            "unreadable": [asdict(one) for one in unreadable],
            "search": index.method,
            **{name: getattr(done, name) for name in ("added", "changed", "removed", "unchanged", "recognised")},
        },
        "results": results,
    }
    for one in done.unreadable[:NAMED]:
        output.note(f"skipped: {one.path}: {one.reason}")
    if len(done.unreadable) > NAMED:
        output.note(f"and {len(done.unreadable) - NAMED} more: --json names all")
    output.note(_summary(index, done, len(unreadable)))


def _summary(index: PhotoIndex, done: Update, unreadable: int) -> str:
    parts = [f"{len(index)} pictures", f"{done.added} new", f"{done.changed} changed", f"{done.removed} gone"]
    if done.recognised:
        parts.append(f"{done.recognised} recognised by their content")
    if unreadable:
        parts.append(f"{unreadable} that cannot be read are left out")
    return ", ".join(parts)


def _show(output: Output, results: Sequence[Result]) -> None:
    for one in results:
        title = one.query if one.kind == "text" else f"like {one.query}"
        rows = [[str(match.rank), f"{match.cosine:.4f}", match.path] for match in one.matches]
        output.table(title, ("rank", "cosine", "picture"), rows)


def _write_sheet(output: Output, path: Path, index: PhotoIndex, results: Sequence[Result]) -> None:
    from edgeclip.cli import contactsheet
    from edgeclip.cli.writers import write_text

    info = index.model.info
    about = f"{info.name}, {info.precision} in {info.compute} on {info.backend} {info.engine_version}"
    with progress.bar(output, "drawing", sum(len(one.matches) for one in results)) as advance:
        page = contactsheet.draw(index.folder, results, about, advance)
    write_text(path, page)
    output.document["html"] = str(path)
    output.note(f"contact sheet -> {path}")
