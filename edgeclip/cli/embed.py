"""`edgeclip embed`: images and texts to vectors, in a file or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgeclip import __version__
from edgeclip.cli import progress, sources
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import Engine, bundle_argument, engine_options, stream_options
from edgeclip.cli.output import Output
from edgeclip.errors import InputError, UsageError
from edgeclip.manifest import Tower

if TYPE_CHECKING:
    from edgeclip.cli.writers import Rows, Write
    from edgeclip.form import Form
    from edgeclip.model import Model
    from edgeclip.pixels import Skipped
    from edgeclip.quantized import Dtype

TEXTS_PER_RUN = 256
OnError = Literal["raise", "skip"]
DTYPES = ("float32", "float16", "int8", "binary")


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip embed b32.edgeclip photos/ -o photos.npz",
        "find . -name '*.jpg' | edgeclip embed b32.edgeclip - --on-error skip -o all.parquet",
        "edgeclip embed b32.edgeclip photos/ --dtype int8 -o photos.npy",
        'edgeclip embed b32.edgeclip --text "a red bicycle" --text "a blue bicycle" > texts.jsonl',
    ),
)
@bundle_argument
@click.argument("inputs", nargs=-1)
@click.option("--text", "texts", multiple=True, help="A text to embed; may be given again.")
@click.option("--texts", "text_file", metavar="FILE", help="A file of texts, one a line; - reads standard input.")
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="A .npy, .npz, .parquet or .jsonl file.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the rows.")
@click.option("--dim", type=click.IntRange(min=1), help="First dimensions to keep, where the model was trained so.")
@stream_options
@engine_options
@click.pass_obj
def command(
    output: Output,
    bundle: Path,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    text_file: str | None,
    path: Path | None,
    dtype: Dtype,
    dim: int | None,
    batch_size: int | None,
    on_error: OnError,
    engine: Engine,
) -> None:
    """Embed images and texts with BUNDLE; each row is L2-normalised, and then made small by --dtype.

    INPUTS are image files, folders (searched recursively), or - for paths on standard input. Without -o the result is
    JSON lines on standard output. An output file appears when it is complete.
    """
    from edgeclip.cli import writers
    from edgeclip.form import choose_form

    if path is not None:
        writers.check_path(path)
    paths = sources.images(inputs, missing_ok=on_error == "skip")
    wanted = [*texts, *(sources.lines(text_file) if text_file is not None else [])]
    if not paths and not wanted:
        raise UsageError("nothing to embed", hint="name images or folders, or use --text or --texts")
    if path is not None:
        writers.check_sources(path, [*paths, *wanted])
    skipped: list[Skipped] = []
    started = time.perf_counter()
    with engine.load(bundle, _tower(paths, wanted), tuned=True) as model:
        form = choose_form(model.bundle.manifest.model, dtype, dim)
        provenance = {**model.info.provenance(), "edgeclip": __version__, **form.described()}
        output.document["provenance"] = provenance
        with (
            _writer(output, path, provenance, form) as write,
            _bar(output, path, len(paths) + len(wanted)) as advance,
        ):
            for rows in _images(model, paths, form, batch_size, on_error, skipped, advance):
                write(rows)
            for rows in _texts(model, wanted, form, advance):
                write(rows)
            if len(skipped) == len(paths) and paths and not wanted:
                raise InputError(f"none of {len(paths)} images can be read: {skipped[0].reason}")
    count = len(paths) + len(wanted) - len(skipped)
    _conclude(output, path, count, skipped, time.perf_counter() - started)


def _tower(paths: Sequence[str], texts: Sequence[str]) -> Tower | None:
    """The one tower that is needed, or None for both."""
    return None if paths and texts else "image" if paths else "text"


def _images(
    model: Model,
    paths: list[str],
    form: Form,
    batch_size: int | None,
    on_error: OnError,
    skipped: list[Skipped],
    advance: progress.Advance,
) -> Iterator[Rows]:
    from edgeclip.cli.writers import Rows

    if not paths:
        return
    for batch in model.stream_image(paths, batch_size=batch_size, on_error=on_error, dtype=form.dtype, dim=form.dim):
        skipped += batch.skipped
        yield Rows("image", [paths[i] for i in batch.indices], batch.embeddings)
        advance(len(batch.indices) + len(batch.skipped))


def _texts(model: Model, texts: Sequence[str], form: Form, advance: progress.Advance) -> Iterator[Rows]:
    from edgeclip.cli.writers import Rows

    for start in range(0, len(texts), TEXTS_PER_RUN):
        chunk = list(texts[start : start + TEXTS_PER_RUN])
        yield Rows("text", chunk, model.encode_text(chunk, dtype=form.dtype, dim=form.dim))
        advance(len(chunk))


def _writer(output: Output, path: Path | None, provenance: dict[str, Any], form: Form) -> AbstractContextManager[Write]:
    from edgeclip.cli import writers

    if path is not None:
        return writers.open_writer(path, provenance, writers.Columns(form.columns, form.stored))
    return _collected(output) if output.as_json else writers.jsonl_lines(output.stream, provenance)


@contextmanager
def _collected(output: Output) -> Iterator[Write]:
    """Rows inside the one JSON document."""
    from edgeclip.cli.writers import described

    found: list[dict[str, Any]] = []

    def write(rows: Rows) -> None:
        found.extend(described(rows))

    yield write
    output.document["rows"] = found


def _bar(output: Output, path: Path | None, total: int) -> AbstractContextManager[progress.Advance]:
    """No bar where it would run through the rows on a terminal."""
    if path is None and output.stream.isatty():
        return nullcontext(lambda amount: None)
    return progress.bar(output, "embedding", total)


def _conclude(output: Output, path: Path | None, count: int, skipped: list[Skipped], seconds: float) -> None:
    output.document |= {
        "output": str(path) if path else None,
        "count": count,
        "skipped": skipped,
        "elapsed_s": round(seconds, 3),
    }
    for one in skipped:
        output.note(f"skipped: {one.source}: {one.reason}")
    where = f" -> {path}" if path else ""
    output.note(f"{count} embedded, {len(skipped)} skipped, in {seconds:.2f} s{where}")
