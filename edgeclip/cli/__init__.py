"""The command line. A command's module is imported when the command is called, so that `--help` costs little."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, TextIO, cast

import click

from edgeclip.cli.failures import BROKEN_PIPE, Failure, describe
from edgeclip.cli.group import root
from edgeclip.cli.output import Output

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, command: click.Command = root, name: str = "edgeclip") -> int:
    """Run a command line and return the exit code; never raises, but for `SystemExit` after a SIGTERM.

    Args:
        command: `edgeclip` with all its commands, or one that is a program of its own.
        name: what usage messages call it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _tolerate(sys.stdout, sys.stderr)
    _clean_up_on_termination()
    output = Output(as_json="--json" in _options(arguments))
    with warnings.catch_warnings():
        _tidy_warnings()
        return _finish(output, _run(command, name, arguments, output))


def _run(command: click.Command, name: str, arguments: list[str], output: Output) -> Failure | None:
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=output)
    except SystemExit:
        raise
    except BaseException as exc:
        if os.environ.get("EDGECLIP_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        return describe(exc)
    return None if not code else Failure("Exit", "", "", int(code))


def _finish(output: Output, failure: Failure | None) -> int:
    """Say what went wrong; print the one JSON document."""
    try:
        if failure is not None and failure.message:
            _complain(failure)
        output.finish(failure)
        sys.stdout.flush()
    except BrokenPipeError:
        failure = Failure("BrokenPipeError", "", "", BROKEN_PIPE)
    if failure is None:
        return 0
    if failure.exit_code == BROKEN_PIPE:
        _silence_stdout()
    return failure.exit_code


def _complain(failure: Failure) -> None:
    sys.stderr.write(f"error: {failure.message}\n")
    if failure.hint:
        sys.stderr.write(f"hint: {failure.hint}\n")
    sys.stderr.flush()


def _options(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _tolerate(*streams: TextIO | None) -> None:
    """A console that lacks a character shows another in its place."""
    for stream in streams:
        with suppress(AttributeError, ValueError, OSError):
            cast("TextIO", stream).reconfigure(errors="replace")  # type: ignore[attr-defined]


def _tidy_warnings() -> None:
    """One line each, and only ours: what libraries say among themselves is for `python -W` to show."""
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    warnings.filterwarnings("once", module=r"edgeclip(\.|$)")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)


def _clean_up_on_termination() -> None:
    """SIGTERM ends the process as Ctrl-C does: temporary files go."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _silence_stdout() -> None:
    """Nobody reads any more: what is still in the buffer must not raise when the interpreter ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
