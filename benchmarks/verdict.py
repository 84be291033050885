"""What the ratio of two medians allows to be said."""

from __future__ import annotations

from typing import Literal

from edgeclip.benchmarks.results import CONTROL
from edgeclip.benchmarks.timing import Estimate

Verdict = Literal["faster", "slower", "equal", "undecided", "undecided (noisy)"]
MARGIN = 0.02
"""Differences below this are none, within one run."""
RUNS_MARGIN = 0.05
"""The same between two runs: they repeat to within 5 %, as MLPerf asks."""


def verdict(ratio: Estimate, control: Estimate | None, margin: float = MARGIN) -> Verdict:
    """Judge b by its time as a share of a's.

    Args:
        ratio: median(b) / median(a).
        control: the same of a and a second process of a; None where none was measured, which decides nothing.
    """
    if control is None or not control.inside(*CONTROL):
        return "undecided (noisy)"
    if ratio.inside(1 - margin, 1 + margin):
        return "equal"
    if ratio.high < 1 and ratio.value <= 1 - margin:
        return "faster"
    if ratio.low > 1 and ratio.value >= 1 + margin:
        return "slower"
    return "undecided"
