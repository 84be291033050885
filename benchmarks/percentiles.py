"""Percentiles of latencies with intervals, and how even a run was. Samples are taken to be independent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclip.benchmarks.timing import Estimate

Values = NDArray[np.float64]
NEEDS = {0.9: 64, 0.95: 130, 0.99: 662}
"""Percentile -> the least number of samples that says anything firm about it: with 99 % confidence the true percentile
then lies below the second largest sample."""
CONFIDENCE = 0.99
"""Of an early-stopping estimate, as in MLPerf."""


def percentile(values: Values, share: float) -> Estimate | None:
    """The percentile and its 95 % interval between two order statistics; None where there are too few samples.

    Args:
        values: [n], in any order.
        share: 0.9 is the 90th percentile.
    """
    if len(values) < NEEDS.get(share, 1):
        return None
    ordered, below = np.sort(values), _binomial(len(values), share)
    first = int(np.searchsorted(below, 0.025, side="right"))
    last = min(int(np.searchsorted(below, 0.975)) + 1, len(values))
    return Estimate(float(np.quantile(ordered, share)), float(ordered[max(first, 1) - 1]), float(ordered[last - 1]))


def early_stopping(values: Values, share: float = 0.9) -> float | None:
    """What the percentile is at most, with `CONFIDENCE`; None where there are too few samples.

    It is the (h + 1)-th largest sample, for the most samples h that may lie above the percentile and not refute it.

    Source: MLCommons, "MLPerf Inference: early stopping".
    """
    if len(values) < NEEDS.get(share, 1):
        return None
    above = int(np.searchsorted(_binomial(len(values), 1 - share), 1 - CONFIDENCE, side="right")) - 1
    return float(np.sort(values)[len(values) - 1 - above])


def variation(values: Sequence[float]) -> float:
    """Standard deviation by mean; 0 of fewer than two."""
    found = np.asarray(values, np.float64)
    return float(found.std(ddof=1) / found.mean()) if len(found) > 1 else 0.0


def drift(times: Sequence[float], values: Sequence[float]) -> float:
    """By what share the values rise from the first time to the last; robust against outliers; 0 of fewer than three.

    Source: H. Theil, "A rank-invariant method of linear and polynomial regression analysis" (1950); P. K. Sen (1968).
    """
    when, found = np.asarray(times, np.float64), np.asarray(values, np.float64)
    if len(found) < 3:
        return 0.0
    i, j = np.triu_indices(len(found), 1)
    slope = np.median((found[j] - found[i]) / (when[j] - when[i]))
    return float(slope * (when[-1] - when[0]) / np.median(found))


def _binomial(n: int, share: float) -> Values:
    """The chance that at most k of n lie below a percentile, for each k from 0 to n."""
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1)) + math.log(share / (1 - share))
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + n * math.log(1 - share)
    return np.cumsum(np.exp(logs))
