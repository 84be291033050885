"""What a failed command says, and its exit code."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import click

from edgeclip.errors import EdgeClipError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What shells report for a program whose reader has gone away, 128 + SIGPIPE."""
INTERNAL = 70
RESOURCE = 6


@dataclass(frozen=True)
class Failure:
    """Why a command failed."""

    type: str
    message: str
    """One line; empty where nothing is to be said."""
    hint: str
    exit_code: int


class ReaderGoneError(Exception):
    """Whoever read our output has closed it."""


def describe(exc: BaseException) -> Failure:
    """The failure that an exception means."""
    if isinstance(exc, EdgeClipError):
        return Failure(type(exc).__name__, _line(exc.message), _line(exc.hint), exc.exit_code)
    if isinstance(exc, click.ClickException):
        return _usage(exc)
    if isinstance(exc, (click.Abort, KeyboardInterrupt, EOFError)):
        return Failure("Interrupted", "interrupted", "", INTERRUPTED)
    if isinstance(exc, (ReaderGoneError, BrokenPipeError)):
        return Failure("BrokenPipeError", "", "", BROKEN_PIPE)
    if isinstance(exc, MemoryError):
        return Failure("ResourceError", "out of memory", "a smaller batch or fewer threads", RESOURCE)
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure("ResourceError", _line(str(exc)), "free some space and run again", RESOURCE)
    text = _line(str(exc))[:300]
    return Failure(
        type(exc).__name__,
        f"internal error: {type(exc).__name__}{': ' if text else ''}{text}",
        "this is a bug in edgeclip; EDGECLIP_DEBUG=1 shows the traceback",
        INTERNAL,
    )


def _usage(exc: click.ClickException) -> Failure:
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "edgeclip"
    return Failure("UsageError", _line(exc.format_message()), f"see `{command} --help`", 2)


def _line(text: str) -> str:
    return " ".join(text.split())
