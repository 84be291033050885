"""What is tuned among: each artifact on each backend, with each number of threads; and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgeclip import backends
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.timing import Estimate

State = Literal["chosen", "kept", "dominated", "over budget", "not known", "below gate", "failed", "skipped"]
Goal = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Loss:
    """What an artifact loses of the bundle's fp32, in percentage points."""

    basis: str
    """How that is known."""
    bound_pt: float
    """One-sided 95 % bound; 0 of the reference, and of what is held to it by golden vectors."""
    drop_pt: float | None = None
    """None where no data was measured."""
    n: int = 0
    """Samples."""


@dataclass(frozen=True)
class Speed:
    """A measured speed, and how far it is to be trusted."""

    of: Estimate
    doubt: float | None
    """Differences below this share say nothing, as two processes of one artifact may have differed so much meanwhile;
    None where they certainly did, or nothing is known of it."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a contender."""

    image_ms: Speed
    """One image."""
    text_ms: Speed | None
    """One text; None where there is no text tower."""
    images_per_s: Mapping[int, Speed]
    """By batch."""
    load_ms: float
    peak_rss_mb: float
    """At batch 1."""

    @property
    def best_batch(self) -> int:
        """That of the most images a second."""
        return max(self.images_per_s, key=lambda batch: self.images_per_s[batch].of.value)

    @property
    def best_per_s(self) -> Speed:
        """The most images a second, at whichever batch."""
        return self.images_per_s[self.best_batch]


@dataclass(frozen=True)
class Contender:
    """One artifact on one backend, with so many threads."""

    row: Row
    """Whose label tells it from the others."""
    threads: int
    state: State = "kept"
    reason: str = ""
    """Of its state."""
    loss: Loss | None = None
    figures: Figures | None = field(default=None, repr=False)
    is_final: bool = False
    """Whether the longer pass measured it."""

    @property
    def label(self) -> str:
        return self.row.label

    @property
    def size_bytes(self) -> int:
        return self.row.size_bytes

    def marked(self, state: State, reason: str = "") -> Contender:
        """The same in another state."""
        return replace(self, state=state, reason=reason)


def expand(row: Row, threads: Sequence[int]) -> list[Contender]:
    """An artifact with each number of threads; an engine beside the CPU has no use for fewer than all."""
    counts = threads if backends.entry(row.backend).device == "cpu" else [max(threads)]
    return [
        Contender(replace(row, label=f"{row.label}, {n} thread{'s'[: n > 1]}", options={"threads": n}), n)
        for n in counts
    ]


def usual_threads(cpus: int) -> list[int]:
    """One, half of the CPUs and all."""
    return sorted({1, max(1, cpus // 2), cpus})
