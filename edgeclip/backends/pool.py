"""Things that one thread at a time may use, lent to many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from edgeclip.errors import ModelClosedError

T = TypeVar("T")
LONGEST_WAIT_S = 5.0


class Pool(Generic[T]):
    """Makes a thing when none is free, up to a limit; then callers wait. The last one given back is lent first."""

    def __init__(self, make: Callable[[], T], free: Callable[[T], None], limit: int) -> None:
        self._make = make
        self._free = free
        self._limit = limit
        self._idle: list[T] = []
        self._lent = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def lend(self) -> Iterator[T]:
        """A thing for the caller alone. One whose use raised is not lent again.

        Raises:
            ModelClosedError: the pool is closed.
        """
        thing = self._take()
        try:
            yield thing
        except BaseException:
            self._drop(thing)
            raise
        with self._changed:
            self._idle.append(thing)
            self._lent -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Free everything, once what is lent has come back, for which it waits some seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lent == 0, LONGEST_WAIT_S)
            idle, self._idle = self._idle, []
        for thing in idle:
            self._free(thing)

    def _take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or self._lent < self._limit)
            if self._closed:
                raise ModelClosedError("this model is closed", hint="load it again")
            self._lent += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._make()
        except BaseException:
            self._returned()
            raise

    def _drop(self, thing: T) -> None:
        try:
            with suppress(Exception):  # what broke it may keep it from being freed; the first error is the one to tell
                self._free(thing)
        finally:
            self._returned()

    def _returned(self) -> None:
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()
