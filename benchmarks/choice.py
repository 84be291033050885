"""Which contender is best for a goal: what is too slow, what cannot be told apart, and what decides then.

Nothing here measures. A winner needs an interval of its own and a control that passed. Where that is not so, the
contenders are taken for equal, and the smaller loss decides, then the fewer threads, then the smaller size.
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


def choose(contenders: Sequence[Contender], goal: Goal, margin: float) -> Choice:
    """The best of contenders that were measured in the same pass.

    Args:
        margin: differences of time below this share are none.
    """
    left, said = list(contenders), GOALS[goal]
    if goal == "size":
        smallest = min(one.size_bytes for one in left)
        left = [one for one in left if one.size_bytes == smallest]
    if len(left) > 1:
        times = {one.label: _time(_figures(one), goal) for one in left}
        if not all(time.controlled for time in times.values()):
            said = f"the control failed, so that none of {len(left)} is called the fastest"
        else:
            best = min(times.values(), key=lambda time: time.of.value).of
            left = [one for one in left if _is_equal(times[one.label].of, best, margin)]
            if goal == "size":
                said += ", and the lowest latency with them"
            if len(left) > 1:
                said = f"{len(left)} cannot be told apart in {_quantity(goal)}"
    if len(left) > 1:
        left, why = _settled(left)
        said += f": {why}"
    return Choice(left[0], best_batch(_figures(left[0]), margin), said)


def best_batch(figures: Figures, margin: float) -> int:
    """The batch of the most images a second; of those that cannot be told apart the smallest, which takes the least
    memory. Where the control failed, the usual one, or the largest below it."""
    speeds = figures.images_per_s
    if not all(speed.controlled for speed in speeds.values()):
        return max((batch for batch in speeds if batch <= BATCH_SIZE), default=min(speeds))
    times = {batch: _inverse(speed.of) for batch, speed in speeds.items()}
    best = min(times.values(), key=lambda time: time.value)
    return min(batch for batch, time in times.items() if _is_equal(time, best, margin))


def dominating(one: Contender, others: Sequence[Contender], margin: float) -> Contender | None:
    """One that is nowhere worse, in latency, throughput, loss and size, and better somewhere; None where none is known
    to be, as where a control failed."""
    return next((other for other in others if _dominates(other, one, margin)), None)


def _dominates(one: Contender, other: Contender, margin: float) -> bool:
    if not _figures(one).controlled or not _figures(other).controlled:
        return False
    pairs = list(zip(_costs(one), _costs(other), (margin, margin, 0.0, 0.0), strict=True))
    worse = any(a > b * (1 + slack) for a, b, slack in pairs)
    better = any(b > a * (1 + slack) for a, b, slack in pairs)
    return better and not worse


def _costs(one: Contender) -> tuple[float, float, float, float]:
    figures = _figures(one)
    assert one.loss is not None
    return figures.image_ms.of.value, 1 / figures.best_per_s, max(0.0, one.loss.bound_pt), one.size_bytes


def _time(figures: Figures, goal: Goal) -> Speed:
    """What is to be short: of an image alone, or in the best of the batches."""
    if goal != "throughput":
        return figures.image_ms
    best = max(figures.images_per_s.values(), key=lambda speed: speed.of.value)
    return Speed(_inverse(best.of), best.controlled)


def _inverse(rate: Estimate) -> Estimate:
    return Estimate(1 / rate.value, 1 / rate.high, 1 / rate.low)


def _is_equal(time: Estimate, best: Estimate, margin: float) -> bool:
    """Whether the intervals overlap, or the difference is none."""
    return time.low <= best.high or time.value <= best.value * (1 + margin)


def _quantity(goal: Goal) -> str:
    return "throughput" if goal == "throughput" else "latency"


RULES: tuple[tuple[str, Callable[[Contender], float]], ...] = (
    ("the smaller loss decides", lambda one: one.loss.bound_pt if one.loss else float("inf")),
    ("the fewer threads decide", lambda one: one.threads),
    ("the smaller size decides", lambda one: one.size_bytes),
)
"""In their order."""


def _settled(equals: Sequence[Contender]) -> tuple[list[Contender], str]:
    """One of several, and the last rule that was needed."""
    left, why = list(equals), "they are alike, the first is taken"
    for words, cost in RULES:
        least = min(map(cost, left))
        narrowed = [one for one in left if cost(one) == least]
        if len(narrowed) < len(left):
            left, why = narrowed, words
        if len(left) == 1:
            break
    return left[:1], why


def _figures(one: Contender) -> Figures:
    assert one.figures is not None
    return one.figures
