"""Which contender is best for a goal: what is too slow, what cannot be told apart, and what decides then.

Nothing here measures. A winner needs an interval of its own, a control that passed, and a difference that is larger
than the control leaves in doubt. Where that is not so, contenders are taken for equal, and the smaller loss decides,
then the fewer threads, then the smaller size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeclip.benchmarks.contenders import Contender, Figures, Goal, Speed
from edgeclip.benchmarks.timing import Estimate
from edgeclip.model import BATCH_SIZE

SLACK = 1.5
"""What takes so many times as long as the best, at the least, is out of the race, whatever the control says."""
GOALS: dict[Goal, str] = {
    "latency": "the lowest latency of one image",
    "throughput": "the most images a second",
    "size": "the smallest files",
}


@dataclass(frozen=True)
class Choice:
    """The best, and why."""

    contender: Contender
    batch: int
    rule: str


def finalists(contenders: Sequence[Contender], goal: Goal) -> list[Contender]:
    """Those that a longer look may find to be the best."""
    if goal == "size":
        smallest = min(one.size_bytes for one in contenders)
        return [one for one in contenders if one.size_bytes == smallest]
    times = {one.label: _time(_figures(one), goal).of for one in contenders}
    best = min(times.values(), key=lambda time: time.value)
    return [one for one in contenders if times[one.label].low <= SLACK * best.high]


def choose(contenders: Sequence[Contender], goal: Goal) -> Choice:
    """The best of contenders that were measured in the same pass."""
    left, said = list(contenders), GOALS[goal]
    if goal == "size":
        smallest = min(one.size_bytes for one in left)
        left = [one for one in left if one.size_bytes == smallest]
    if len(left) > 1:
        times = {one.label: _time(_figures(one), goal) for one in left}
        if any(time.doubt is None for time in times.values()):
            said = f"the control failed, so that none of {len(left)} is called the fastest"
        else:
            best = min(times.values(), key=lambda time: time.of.value)
            left = [one for one in left if _is_equal(times[one.label], best)]
            if goal == "size":
                said += ", and the lowest latency with them"
            if len(left) > 1:
                said = f"{len(left)} cannot be told apart in {_quantity(goal)}"
    if len(left) > 1:
        left, why = _settled(left)
        said += f": {why}"
    return Choice(left[0], best_batch(_figures(left[0])), said)


def best_batch(figures: Figures) -> int:
    """The batch of the most images a second; of those that cannot be told apart the smallest, which takes the least
    memory. Where the control failed, the usual one, or the largest below it."""
    speeds = figures.images_per_s
    if any(speed.doubt is None for speed in speeds.values()):
        return max((batch for batch in speeds if batch <= BATCH_SIZE), default=min(speeds))
    best = _inverse(figures.best_per_s)
    return min(batch for batch, speed in speeds.items() if _is_equal(_inverse(speed), best))


def dominating(one: Contender, others: Sequence[Contender]) -> Contender | None:
    """One that is nowhere worse, in latency, throughput, loss and size, and better somewhere; None where none is known
    to be, as where a control failed."""
    return next((other for other in others if _dominates(other, one)), None)


def _dominates(one: Contender, other: Contender) -> bool:
    """Whether it is nowhere worse and certainly better somewhere; differences of speed that are in doubt are none."""
    mine, theirs = _figures(one), _figures(other)
    speeds = [(mine.image_ms, theirs.image_ms), (_inverse(mine.best_per_s), _inverse(theirs.best_per_s))]
    if any(speed.doubt is None for pair in speeds for speed in pair):
        return False
    assert one.loss is not None and other.loss is not None
    exact = [(max(0.0, one.loss.bound_pt), max(0.0, other.loss.bound_pt)), (one.size_bytes, other.size_bytes)]
    is_worse = any(a.of.value > b.of.value * (1 + _doubt(a, b)) for a, b in speeds) or any(a > b for a, b in exact)
    is_better = any(not _is_equal(b, a) for a, b in speeds) or any(a < b for a, b in exact)
    return is_better and not is_worse


def _time(figures: Figures, goal: Goal) -> Speed:
    """What is to be short: of an image alone, or in the best of the batches."""
    return _inverse(figures.best_per_s) if goal == "throughput" else figures.image_ms


def _inverse(rate: Speed) -> Speed:
    return Speed(Estimate(1 / rate.of.value, 1 / rate.of.high, 1 / rate.of.low), rate.doubt)


def _is_equal(time: Speed, best: Speed) -> bool:
    """Whether the intervals overlap, or the difference is in doubt."""
    return time.of.low <= best.of.high or time.of.value <= best.of.value * (1 + _doubt(time, best))


def _doubt(one: Speed, other: Speed) -> float:
    return max(one.doubt or 0.0, other.doubt or 0.0)


def _quantity(goal: Goal) -> str:
    return "throughput" if goal == "throughput" else "latency"


RULES: tuple[tuple[str, Callable[[Contender], float]], ...] = (
    ("the smaller loss", lambda one: one.loss.bound_pt if one.loss else float("inf")),
    ("the fewer threads", lambda one: one.threads),
    ("the smaller size", lambda one: one.size_bytes),
)
"""In their order."""


def _settled(equals: Sequence[Contender]) -> tuple[list[Contender], str]:
    """One of several, and the rules that it took, in words."""
    left, said = list(equals), list[str]()
    for words, cost in RULES:
        least = min(map(cost, left))
        narrowed = [one for one in left if cost(one) == least]
        if len(narrowed) < len(left):
            said.append(words)
        left = narrowed
    if len(left) > 1:
        said.append("the order of the bundle")
    return left[:1], f"decided by {', then '.join(said)}"


def _figures(one: Contender) -> Figures:
    assert one.figures is not None
    return one.figures
