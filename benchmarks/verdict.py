"""What the ratio of two times allows to be said."""

from __future__ import annotations

from typing import Literal

from edgeclip.benchmarks.timing import Estimate

Verdict = Literal["faster", "slower", "equal", "undecided", "undecided (noisy)"]
MARGIN = 0.02
"""Differences below this are none, where processes were started often enough to tell."""
COARSE_MARGIN = 0.05
"""The same where they were not, and between two runs, which repeat to within 5 %, as MLPerf asks: two processes of one
program differ for as long as they live, by where their memory lies."""
TRIALS = 3
"""Enough."""


def margin_of(trials: int) -> float:
    """What is no difference in a run of so many trials."""
    return MARGIN if trials >= TRIALS else COARSE_MARGIN


def passes(control: Estimate, margin: float) -> bool:
    """Whether a program may be as fast as itself: it fails where a difference beyond the margin is certain."""
    return control.low <= 1 + margin and control.high >= 1 - margin


def doubt(control: Estimate, margin: float) -> float:
    """The largest difference that two processes of one program may have had here; the margin at least."""
    return max(margin, control.high - 1, 1 - control.low)


def verdict(ratio: Estimate, control: Estimate | None, margin: float) -> Verdict:
    """Judge b by its time as a share of a's.

    Args:
        ratio: of b's time to a's.
        control: the same of a and a second process of a; None where none was measured, which decides nothing.
    """
    if control is None or not passes(control, margin):
        return "undecided (noisy)"
    if ratio.inside(1 - margin, 1 + margin):
        return "equal"
    least = doubt(control, margin)
    if ratio.high < 1 and ratio.value <= 1 - least:
        return "faster"
    if ratio.low > 1 and ratio.value >= 1 + least:
        return "slower"
    return "undecided"
