"""The search for the fewest layers that must stay in floating point for the loss to fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from edgeclip.manifest import Step

if TYPE_CHECKING:
    from edgeclip.paired import Drop

T = TypeVar("T")
L = TypeVar("L")


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """One attempt, measured."""

    kept: int
    """How many of the most sensitive layers were left in floating point."""
    drop: Drop
    made: T

    def fits(self, max_drop_pt: float) -> bool:
        """Whether the one-sided 95 % bound of the loss is within the budget."""
        return self.drop.high_one_sided_pt <= max_drop_pt

    def step(self, max_drop_pt: float) -> Step:
        """What the manifest keeps of it."""
        return Step(
            kept=self.kept,
            drop_pt=round(self.drop.drop_pt, 4),
            high_pt=round(self.drop.high_one_sided_pt, 4),
            fits=self.fits(max_drop_pt),
        )


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a search came to."""

    best: Candidate[T]
    """The one with the fewest layers kept that fits; where none fits, the one that loses least."""
    steps: tuple[Step, ...]
    """All candidates, in the order tried."""
    fits: bool


def search(
    count: int,
    rank: Callable[[], Sequence[L]],
    attempt: Callable[[frozenset[L]], tuple[T, Drop]],
    max_drop_pt: float,
) -> Found[T]:
    """Keep 0, 1, 2, 4, … of the most sensitive layers until the loss fits, then halve the gap to the last that did not.

    That is about 2 log₂ n attempts for n layers. It takes for granted that keeping more loses no more, which holds but
    for noise; what it returns was measured, whatever holds.

    Args:
        count: layers that there are.
        rank: their names, the most sensitive first; asked for only where quantizing them all loses too much.
        attempt: quantizes all but some layers, and measures what is lost.
        max_drop_pt: percentage points that may be lost.
    """
    steps: list[Step] = []
    best: Candidate[T] | None = None  # the others' artifacts are let go, they may be large

    def fits(kept: int) -> bool:
        nonlocal best
        made, drop = attempt(frozenset(rank()[:kept]) if kept else frozenset())
        candidate = Candidate(kept, drop, made)
        steps.append(candidate.step(max_drop_pt))
        best = candidate if best is None else _better(best, candidate, max_drop_pt)
        return candidate.fits(max_drop_pt)

    low, high = -1, 0  # the most that is known not to do, and what is tried next
    while not fits(high):
        low, high = high, min(max(1, 2 * high), count)
        if low == high:
            break
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    assert best is not None
    return Found(best, tuple(steps), best.fits(max_drop_pt))


def _better(one: Candidate[T], other: Candidate[T], max_drop_pt: float) -> Candidate[T]:
    """The one that fits with fewer layers kept; where neither fits, the one that loses less."""

    def merit(candidate: Candidate[T]) -> tuple[bool, float]:
        fits = candidate.fits(max_drop_pt)
        return not fits, candidate.kept if fits else candidate.drop.high_one_sided_pt

    return min(one, other, key=merit)
