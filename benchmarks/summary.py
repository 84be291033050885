"""From what the processes of all trials did to the numbers of a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeclip.benchmarks import percentiles, timing
from edgeclip.benchmarks.percentiles import Values
from edgeclip.benchmarks.record import Comparison, Control, Stage, Throughput, Warmup
from edgeclip.benchmarks.timing import Estimate, Samples
from edgeclip.benchmarks.trial import CONTROL, Cell, Rounds, Trial, medians
from edgeclip.benchmarks.verdict import margin_of, passes, verdict
from edgeclip.manifest import Tower

NOISY = 0.05
"""Variation of the medians of single seconds, above which a run was not even."""
DRIFTED = 0.03
"""Change from the first second to the last."""
QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Cells:
    """All trials' turns of one cell."""

    cell: Cell
    trials: Sequence[Trial]

    @property
    def labels(self) -> list[str]:
        """Those that every trial has."""
        found = [trial.rounds.get(self.cell, {}) for trial in self.trials]
        return [label for label in (found[0] if found else {}) if all(label in one for one in found)]

    @property
    def margin(self) -> float:
        """Differences below this are none."""
        return margin_of(len(self.trials))

    def stage(self, label: str) -> Stage:
        """The numbers of one artifact."""
        milliseconds = np.concatenate([calls(rounds) for rounds in self._rounds(label)]) * 1e3
        return Stage(
            stage=self.cell[0],
            batch=self.cell[1],
            n=len(milliseconds),
            mean_ms=float(milliseconds.mean()),
            stdev_ms=float(milliseconds.std(ddof=1)) if len(milliseconds) > 1 else 0.0,
            min_ms=float(milliseconds.min()),
            max_ms=float(milliseconds.max()),
            p50_ms=self.median_ms(label),
            p90_ms=percentiles.percentile(milliseconds, 0.9),
            p95_ms=percentiles.percentile(milliseconds, 0.95),
            p99_ms=percentiles.percentile(milliseconds, 0.99),
            p90_early_stopping_ms=percentiles.early_stopping(milliseconds),
            trial_p50_ms=tuple(float(np.median(calls(rounds))) * 1e3 for rounds in self._rounds(label)),
            quantiles_ms=tuple(float(q) for q in np.quantile(milliseconds, QUANTILES)),
            warmup=self._warmup(label),
            flags=self.flags(label),
        )

    def median_ms(self, label: str) -> Estimate:
        """The median of all turns' medians, by bootstrap."""
        samples, trials = self._medians(label)
        return timing.median(samples * 1e3, trials=trials)

    def throughput(self, label: str, tower: Tower) -> Throughput:
        """Inputs a second."""
        batch, each = self.cell[1], self.median_ms(label)
        rate = Estimate(*(1e3 * batch / ms for ms in (each.value, each.high, each.low)))
        return Throughput(tower=tower, batch=batch, per_s=rate, flags=self.flags(label))

    def control(self) -> Control | None:
        """The first artifact and its second process; None where either did not live to the end."""
        if CONTROL not in self.labels or {one.controlled for one in self.trials} != {self.labels[0]}:
            return None
        ratio = self._ratio(CONTROL, self.labels[0])
        return Control(stage=self.cell[0], batch=self.cell[1], ratio=ratio, passed=passes(ratio, self.margin))

    def comparisons(self) -> Iterator[Comparison]:
        """Each artifact and the first."""
        control = self.control()
        first, *others = self.labels
        for label in others:
            if label == CONTROL:
                continue
            ratio = self._ratio(label, first)
            yield Comparison(
                a=first,
                b=label,
                stage=self.cell[0],
                batch=self.cell[1],
                ratio=ratio,
                verdict=verdict(ratio, control.ratio if control else None, self.margin),
            )

    def flags(self, label: str) -> tuple[str, ...]:
        """How uneven its run was."""
        found = []
        seconds = [_by_second(rounds) for rounds in self._rounds(label)]
        if max(percentiles.variation(values) for _, values in seconds) > NOISY:
            found.append("noisy")
        if max(abs(percentiles.drift(times, values)) for times, values in seconds) > DRIFTED:
            found.append("drift")
        if not self._warmup(label).steady:
            found.append("not steady")
        return tuple(found)

    def _rounds(self, label: str) -> list[Rounds]:
        return [trial.rounds[self.cell][label] for trial in self.trials]

    def _medians(self, label: str) -> tuple[Samples, int]:
        """Each trial's turns, as many of each as the shortest has, so that rounds can be drawn from all alike."""
        found = [medians(rounds) for rounds in self._rounds(label)]
        shortest = min(len(one) for one in found)
        return np.concatenate([one[:shortest] for one in found]), len(found)

    def _ratio(self, label: str, first: str) -> Estimate:
        samples, trials = self._medians(label)
        return timing.paired_ratio(samples, self._medians(first)[0], trials=trials)

    def _warmup(self, label: str) -> Warmup:
        found = [trial.warmth[self.cell][label] for trial in self.trials]
        return Warmup(
            seconds=sum(one.seconds for one in found),
            calls=sum(one.calls for one in found),
            steady=all(one.steady for one in found),
        )


def calls(rounds: Rounds) -> Values:
    """Seconds of every timed call, in order."""
    return np.concatenate([turn.seconds for pair in rounds for turn in pair])


def _by_second(rounds: Rounds) -> tuple[list[float], list[float]]:
    """Each second that had turns, and the median of the calls in it."""
    turns = sorted((turn for pair in rounds for turn in pair), key=lambda turn: turn.at_s)
    bins: dict[int, list[float]] = {}
    for turn in turns:
        bins.setdefault(int(turn.at_s - turns[0].at_s), []).extend(turn.seconds)
    return [float(second) for second in bins], [float(np.median(values)) for values in bins.values()]
