"""Measuring while nothing else runs, or saying that something did; and lines that tell how far a run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from edgeclip.benchmarks import environment
from edgeclip.benchmarks.results import BUSY

STOLEN = 0.01
"""Share of the CPUs' time that other guests of the machine may take in a run."""
SLOWED = 1.05


@contextmanager
def quietly(title: str, patience_s: float, say: Callable[[str], None]) -> Iterator[list[str]]:
    """Wait for the machine to be quiet, if there is patience for that; yields flags, which are complete at the end."""
    say(title)
    if patience_s and not environment.wait_for_quiet(BUSY, patience_s):
        say("  other processes are running: this will be flagged")
    flags: list[str] = []
    others = environment.Others()
    yield flags
    if (share := others.share()) > BUSY:
        flags.append(f"busy: others took {share:.1f} CPUs")


class Disturbances:
    """What happened to the machine during a run."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._stolen, self._started = environment.stolen_s(), time.monotonic()

    def flags(self, canary_ms: list[float], *, busy: bool) -> list[str]:
        """Of the whole run.

        Args:
            canary_ms: a fixed piece of work, at several times.
            busy: whether other processes ran in any part.
        """
        found = ["busy: other processes ran at times"] if busy else []
        if environment.stolen_s() - self._stolen > STOLEN * self._threads * (time.monotonic() - self._started):
            found.append("virtualised: other guests took CPU time")
        if max(canary_ms) > SLOWED * min(canary_ms):
            found.append("device_slowed: a fixed piece of work took over 5 % longer at times")
        return found


class Progress:
    """Lines on standard error, with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        click.echo(f"[{time.monotonic() - self._started:6.1f} s] {text}", err=True)
