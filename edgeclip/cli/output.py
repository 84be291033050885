"""Where a command's results go: tables for people, or one JSON document. Remarks go to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

from edgeclip.cli import tables

if TYPE_CHECKING:
    from edgeclip.cli.failures import Failure

MARKS = {"ok": "✅", "below gate": "❎", "failed": "❌", "differs": "❌", "not known": "➖"}


class Output:
    """The results of one command."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.quiet = False
        self.document: dict[str, Any] = {}
        """With `--json`, what is printed at the end; a failure is added to it."""
        self._stream: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        """Standard output, for results alone."""
        return self._stream or sys.stdout

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep standard output to ourselves: what libraries print there, by Python or not, goes to standard error."""
        original = sys.stdout
        with _only_ours(original) as self._stream:
            sys.stdout = sys.stderr
            try:
                yield
            finally:
                sys.stdout = original
                self._stream = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; nothing with `--json`."""
        if not self.as_json:
            tables.write(self.stream, title, columns, rows)

    def facts(self, title: str, facts: dict[str, str]) -> None:
        """Print names and values; nothing with `--json`."""
        self.table(title, ("", ""), list(facts.items()))

    def line(self, text: str) -> None:
        """Print a line; nothing with `--json`."""
        if not self.as_json:
            self.stream.write(f"{tables.clean(text)}\n")

    def note(self, text: str) -> None:
        """A remark on standard error; nothing with `--quiet`."""
        if not self.quiet:
            sys.stderr.write(f"{tables.clean(text)}\n")

    def status(self, word: str) -> str:
        """The word with its mark, or alone where the terminal cannot show the mark."""
        mark = MARKS[word]
        return f"{mark} {word}" if _can_show(self.stream, mark) else word

    def finish(self, failure: Failure | None) -> None:
        """With `--json`, print the document."""
        if not self.as_json:
            return
        if failure is not None:
            self.document["error"] = asdict(failure)
        if self.document:
            self.stream.write(to_json(self.document, self.stream, indent=1) + "\n")


def to_json(value: Any, stream: TextIO, *, indent: int | None = None) -> str:
    """JSON that the stream can encode."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)
    return text if _can_show(stream, text) else json.dumps(value, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "__struct_fields__"):
        import msgspec

        return msgspec.to_builtins(value)
    return str(value)


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _only_ours(original: TextIO) -> Iterator[TextIO]:
    """A stream to where the descriptor of `original` led; meanwhile that descriptor leads to standard error."""
    try:
        descriptor, elsewhere = original.fileno(), sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something that is no file
        yield original
        return
    original.flush()
    saved = os.dup(descriptor)
    os.dup2(elsewhere, descriptor)
    stream = os.fdopen(
        os.dup(saved), "w", encoding=original.encoding, errors="replace", buffering=1 if os.isatty(saved) else -1
    )
    try:
        yield stream
        stream.flush()
    finally:
        with suppress(BrokenPipeError):
            original.flush()
        os.dup2(saved, descriptor)
        os.close(saved)
        with suppress(BrokenPipeError):
            stream.close()
