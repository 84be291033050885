"""Calls into engines that are under way, so that the interpreter does not end beneath them.

A daemon thread that returns from an engine into an interpreter that is being torn down is ended in the middle of C++
code, which aborts the process. So the end waits for calls under way, and lets no new ones begin.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.errors import ModelClosedError

LONGEST_WAIT_S = 5.0


class _Gate:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.running = 0
        self.ending = False


_gate = _Gate()


@contextmanager
def call() -> Iterator[None]:
    """Around every call into an engine.

    Raises:
        ModelClosedError: the interpreter is ending.
    """
    with _gate.changed:
        if _gate.ending:
            raise ModelClosedError("the interpreter is ending", hint="end your threads before the program ends")
        _gate.running += 1
    try:
        yield
    finally:
        with _gate.changed:
            _gate.running -= 1
            if _gate.ending:
                _gate.changed.notify_all()


@atexit.register
def _wait() -> None:
    with _gate.changed:
        _gate.ending = True
        _gate.changed.wait_for(lambda: _gate.running == 0, LONGEST_WAIT_S)


def _forget() -> None:
    """In a forked child, no call is under way, whatever the parent's threads were doing."""
    global _gate
    _gate = _Gate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
