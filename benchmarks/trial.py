"""One trial: a fresh process for each artifact, all of them called in turns. One that dies ends nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.benchmarks import timing
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.timing import PAUSE_S, Warmth
from edgeclip.benchmarks.verdict import doubt
from edgeclip.benchmarks.workers import COMMAND, Loaded, Worker, closing
from edgeclip.errors import EdgeClipError

CONTROL = "control"
"""Label of the second process of the first artifact that runs."""
DISCARD = 2
"""Calls at the beginning of each turn, while caches fill with what this process needs."""
TURN_S = 0.05
SHORT_PAUSE_S, SHORT_TURN_S = 0.005, 0.01
"""For engines with one thread: a round is over before a neighbour on the same host begins or ends, and the interval of
the control is a third as wide after the same time. Pools of threads need longer ones: in turns of 10 ms, a sixth of the
calls of ONNX Runtime with two threads waited 4 ms for a thread; in 50 ms few did."""
MOST_CALLS = 50

Cell = tuple[str, int]
"""A stage and a batch size."""


@dataclass(frozen=True)
class Turn:
    """Some calls without pauses between them."""

    at_s: float
    seconds: list[float]


Rounds = list[tuple[Turn, Turn]]


@dataclass(frozen=True)
class Pace:
    """How long a cell is measured."""

    seconds: float
    """For each artifact."""
    turns: int
    """At least."""
    warmup_s: float
    window_s: float
    most_warmup_s: float
    extensions: int
    """How often it is measured again, half as long, until the control is known closely enough."""
    margin: float
    """How closely that is."""


@dataclass
class Trial:
    """What the processes of one trial did."""

    images: Sequence[Path]
    threads: int
    workers: dict[str, Worker] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    failed: dict[str, EdgeClipError] = field(default_factory=dict)
    rounds: dict[Cell, dict[str, Rounds]] = field(default_factory=dict)
    warmth: dict[Cell, dict[str, Warmth]] = field(default_factory=dict)
    controlled: str = ""
    """What the control is a second process of."""
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(
        self, rows: Sequence[Row], seed: int, commands: Mapping[str, Sequence[str]] | None = None
    ) -> AbstractContextManager[Any]:
        """Start and load a process for each row, in random order, and a control of the first that runs.

        Args:
            commands: what makes a label's process, where that is not the usual one.
        """
        commands = commands or {}
        wanted = [(row.label, row) for row in rows] + [(CONTROL, row) for row in rows[:1]]
        for number in np.random.default_rng(seed).permutation(len(wanted)):
            label, row = wanted[number]
            self._start(label, row, commands)
        runs = [row for row in rows if row.label in self.workers]
        if runs:
            self.controlled = runs[0].label
        if runs and runs[0] is not rows[0]:
            self.failed.pop(CONTROL, None)
            self._start(CONTROL, runs[0], commands)
        names = [*(row.label for row in runs), CONTROL]
        self.workers = {name: self.workers[name] for name in names if name in self.workers}
        return closing(self.workers)

    def measure(self, cell: Cell, pace: Pace, only: Sequence[str] | None = None) -> None:
        """Warm up every process that has this stage, then call them in turns.

        Args:
            only: these labels; all by default, and the control.
        """
        able = [
            label
            for label, worker in self.workers.items()
            if label not in self.failed and (only is not None or cell[0] in worker.row.stages)
        ]
        counts = {label: self._warmed(label, cell, pace) for label in able if only is None or label in only}
        counts = {label: count for label, count in counts.items() if label not in self.failed}
        found: dict[str, Rounds] = {label: [] for label in counts}
        for number in range(1 + pace.extensions):
            more = self._interleaved(cell, counts, pace if number == 0 else replace(pace, seconds=pace.seconds / 2))
            found = {label: [*found[label], *more[label]] for label in counts}
            if only is not None or _is_settled(found, pace.margin):
                break
        self.rounds[cell] = {label: rounds for label, rounds in found.items() if label not in self.failed}

    def each(self, do: Callable[[Worker], Any]) -> dict[str, Any]:
        """What every process that runs answers; not the control."""
        found = {}
        for label, worker in self.workers.items():
            if label not in self.failed and label != CONTROL:
                try:
                    found[label] = do(worker)
                except EdgeClipError as exc:
                    self.failed[label] = exc
        return found

    def _start(self, label: str, row: Row, commands: Mapping[str, Sequence[str]]) -> None:
        worker = Worker(row, commands.get(label, COMMAND))
        try:
            self.loaded[label] = worker.load(self.images, self.threads)
            self.workers[label] = worker
        except EdgeClipError as exc:
            worker.close()
            self.failed[label] = exc

    def _warmed(self, label: str, cell: Cell, pace: Pace) -> int:
        """How many calls a turn has."""
        least, window, most = pace.warmup_s, pace.window_s, pace.most_warmup_s
        try:
            warmth = self.workers[label].warm(*cell, least_s=least, window_s=window, most_s=most)
        except EdgeClipError as exc:
            self.failed[label] = exc
            return 0
        self.warmth.setdefault(cell, {})[label] = warmth
        _, turn_s = self._rhythm
        return int(np.clip(turn_s * warmth.calls / warmth.seconds, 1, MOST_CALLS))

    @property
    def _rhythm(self) -> tuple[float, float]:
        """Seconds of the pause before a turn, and of the turn."""
        return (SHORT_PAUSE_S, SHORT_TURN_S) if self.threads == 1 else (PAUSE_S, TURN_S)

    def _interleaved(self, cell: Cell, counts: Mapping[str, int], pace: Pace) -> dict[str, Rounds]:
        pause_s, _ = self._rhythm

        def observe(label: str) -> Turn:
            time.sleep(pause_s)
            at = time.monotonic()
            if label in self.failed:
                return Turn(at, [])
            try:
                return Turn(at, self.workers[label].turn(*cell, discard=DISCARD, count=counts[label]))
            except EdgeClipError as exc:
                self.failed[label] = exc
                return Turn(at, [])

        labels = {label: label for label in counts if label not in self.failed}
        found = timing.interleave(labels, observe, budget_s=pace.seconds, min_queries=pace.turns, warmup=0)
        return {label: found.get(label, []) for label in counts}


def medians(rounds: Rounds) -> timing.Samples:
    """Seconds, [rounds, 2]: the median of each turn."""
    return timing.column(rounds, lambda turn: float(np.median(turn.seconds)))


def _is_settled(found: Mapping[str, Rounds], margin: float) -> bool:
    """Whether the control is known as closely as the margin; where there is none, nothing is gained by measuring on."""
    if not found.get(CONTROL):
        return True
    first = next(iter(found))
    if not found[first][-1][1].seconds or not found[CONTROL][-1][1].seconds:
        return True
    return doubt(timing.paired_ratio(medians(found[CONTROL]), medians(found[first])), margin) == margin
