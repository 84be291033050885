"""Interleaved timing of several ways to do one thing, and what may be concluded from it.

A round runs every contender once in some order and once in the reverse of it (A, B, C, C, B, A), so that a slow drift
of the machine falls on all alike. From round to round the order rotates through a Williams design, in which every
contender comes directly after every other equally often: caches hold what the last call used. Samples of a round
belong together, and are drawn together by the bootstrap. Where a measurement was repeated with fresh processes, these
trials are drawn first and then rounds within them, so that what differs between processes widens the interval.

Source: Williams, "Experimental designs balanced for the estimation of residual effects of treatments" (1949).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Samples = NDArray[np.float64]
"""[rounds, 2]: one contender's samples."""
T = TypeVar("T")
C = TypeVar("C")

RESAMPLES = 10_000
SEED = 0
PAUSE_S = 0.02
"""Before each call in this process. Thread pools spin for some milliseconds after a call and take the CPUs of the next:
without a pause, a call of 70 ms took a sixth longer after another engine's than after its own."""
STEADY = 0.05
"""By how much the medians of two windows may differ once calls are warm."""
P90_NEEDS = 64
"""Fewer queries than this say nothing firm about the slowest tenth."""
_CHUNK = 1 << 22
"""Numbers that the bootstrap holds at once."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def inside(self, low: float, high: float) -> bool:
        """Whether the whole interval is."""
        return low <= self.low and self.high <= high


def order(count: int, number: int) -> list[int]:
    """The order of `count` contenders in the first half of a round: 0, 1, n-1, 2, n-2, … moved on by `number`."""
    zigzag = [(i + 1) // 2 if i % 2 else (count - i // 2) % count for i in range(count)]
    return [(position + number) % count for position in zigzag]


def interleave(
    contenders: Mapping[str, C],
    observe: Callable[[C], T],
    *,
    budget_s: float,
    min_queries: int,
    warmup: int = 3,
) -> dict[str, list[tuple[T, T]]]:
    """Observe every contender twice a round, until the time is spent and there are enough queries.

    Args:
        budget_s: for each contender; all share what they have together.
        min_queries: per contender, however long that takes.
        warmup: calls of each contender before the first round.

    Returns:
        Name -> one pair of observations a round.
    """
    names = list(contenders)
    found: dict[str, list[tuple[T, T]]] = {name: [] for name in names}
    for name in names:
        for _ in range(warmup):
            observe(contenders[name])
    started, number = time.monotonic(), 0
    with without_garbage_collection():
        while 2 * number < min_queries or time.monotonic() - started < budget_s * len(names):
            forth = [names[i] for i in order(len(names), number)]
            first = {name: observe(contenders[name]) for name in forth}
            second = {name: observe(contenders[name]) for name in reversed(forth)}
            for name in names:
                found[name].append((first[name], second[name]))
            number += 1
    return found


def elapsed(call: Call) -> float:
    """Seconds of one call."""
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e9


def time_calls(
    contenders: Mapping[str, Call], *, budget_s: float, min_queries: int, warmup: int = 3
) -> dict[str, Samples]:
    """`interleave` of calls in this process, with a pause before each: name -> seconds, [rounds, 2]."""

    def observe(call: Call) -> float:
        time.sleep(PAUSE_S)
        return elapsed(call)

    observed = interleave(contenders, observe, budget_s=budget_s, min_queries=min_queries, warmup=warmup)
    return {name: np.array(pairs) for name, pairs in observed.items()}


@dataclass(frozen=True)
class Warmth:
    """What it took until calls took equally long."""

    seconds: float
    calls: int
    steady: bool
    """Whether they ever did."""


def settle(call: Call, *, least_s: float, window_s: float, most_s: float, least_calls: int = 20) -> Warmth:
    """Call until the medians of two windows that follow each other agree within `STEADY`."""
    medians: list[float] = []
    started, calls = time.monotonic(), 0
    while True:
        window = repeat(call, window_s)
        medians.append(float(np.median(window)))
        calls += len(window)
        seconds = time.monotonic() - started
        steady = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= STEADY
        if (steady and calls >= least_calls and seconds >= least_s) or seconds >= most_s:
            return Warmth(seconds, calls, steady)


def repeat(call: Call, seconds: float) -> list[float]:
    """Call again and again until the time is spent, at least once. Returns each call's seconds."""
    deadline = time.monotonic() + seconds
    found = [elapsed(call)]
    while time.monotonic() < deadline:
        found.append(elapsed(call))
    return found


def median(samples: Samples, seed: int = SEED, trials: int = 1) -> Estimate:
    """The median, and its interval by bootstrap over rounds.

    Args:
        trials: how many there were; the samples are theirs one after the other, equally many of each.
    """
    medians = np.concatenate([np.median(samples[rows], axis=(1, 2)) for rows in _resampled(len(samples), seed, trials)])
    return _estimate(float(np.median(samples)), medians)


def ratio(a: Samples, b: Samples, seed: int = SEED, trials: int = 1) -> Estimate:
    """median(a) / median(b) of samples from the same rounds: above 1 where b is the faster one."""
    return _compare(a, b, np.divide, seed, trials)


def paired_ratio(a: Samples, b: Samples, seed: int = SEED, trials: int = 1) -> Estimate:
    """The median over rounds of a / b, each by the mean of its round: above 1 where b is the faster one.

    Where the machine's speed changes from round to round, this is known better than the ratio of the medians.
    """
    _check(a, b)
    rounds = np.log(a.mean(axis=1) / b.mean(axis=1))
    medians = [np.median(rounds[rows], axis=1) for rows in _resampled(len(rounds), seed, trials)]
    return _estimate(float(np.exp(np.median(rounds))), np.exp(np.concatenate(medians)))


def difference(a: Samples, b: Samples, seed: int = SEED) -> Estimate:
    """median(a) - median(b) of samples from the same rounds."""
    return _compare(a, b, np.subtract, seed)


def p90(samples: Samples) -> float | None:
    """The 90th percentile; None where there are too few samples for one."""
    return float(np.quantile(samples, 0.9)) if samples.size >= P90_NEEDS else None


def canary(repeats: int = 30) -> float:
    """Seconds of a fixed piece of work, the median of some: when it changes, the machine has changed."""
    matrix = np.random.default_rng(SEED).random((256, 256), np.float32)
    return float(np.median([elapsed(lambda: matrix @ matrix) for _ in range(repeats)]))


def _compare(a: Samples, b: Samples, how: Callable[..., NDArray[np.float64]], seed: int, trials: int = 1) -> Estimate:
    _check(a, b)
    found = [
        how(np.median(a[rows], axis=(1, 2)), np.median(b[rows], axis=(1, 2)))
        for rows in _resampled(len(a), seed, trials)
    ]
    return _estimate(float(how(np.median(a), np.median(b))), np.concatenate(found))


def _check(a: Samples, b: Samples) -> None:
    if a.shape != b.shape:
        raise ValueError(f"samples of the same rounds are expected, got {a.shape} and {b.shape}")


def _resampled(rounds: int, seed: int, trials: int = 1) -> Iterator[NDArray[np.int64]]:
    """Rows of [n, rounds], RESAMPLES in all: which rounds a resample is made of."""
    rng = np.random.default_rng(seed)
    step, each = max(1, _CHUNK // (2 * rounds)), rounds // trials
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        drawn = rng.integers(0, each, (count, rounds))
        if trials > 1:
            drawn += each * np.repeat(rng.integers(0, trials, (count, trials)), each, axis=1)
        yield drawn


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def column(pairs: Sequence[tuple[T, T]], of: Callable[[T], float]) -> Samples:
    """One number of each observation, [rounds, 2]."""
    return np.array([[of(one) for one in pair] for pair in pairs], np.float64)
