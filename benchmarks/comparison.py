"""Two records side by side: what may be compared, what the comparison says, and bounds that a record must keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeclip.benchmarks import tabulated
from edgeclip.benchmarks.record import Record, Result, Stage
from edgeclip.benchmarks.timing import Estimate
from edgeclip.benchmarks.verdict import COARSE_MARGIN, Verdict, verdict
from edgeclip.errors import UsageError

_Z = 1.959964
_ONE = Estimate(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Compared:
    """One stage of one artifact in two runs."""

    label: str
    stage: str
    batch: int
    before_ms: Estimate
    after_ms: Estimate
    ratio: Estimate
    """After by before: below 1 where the second run is faster."""
    verdict: Verdict


def differences(a: Record, b: Record) -> list[str]:
    """The fields, with both values, that must be equal in runs that are compared and are not."""
    fields: dict[str, Callable[[Record], object]] = {
        "env.fingerprint": lambda one: one.env.fingerprint,
        "env.cpu": lambda one: one.env.cpu,
        "env.power.mode": lambda one: one.env.power.mode,
        "env.power.battery": lambda one: one.env.power.battery,
        "config.mode": lambda one: one.config.mode,
        "config.threads": lambda one: one.config.threads,
        "config.scenarios": lambda one: ", ".join(one.config.scenarios),
        "config.inputs": lambda one: f"{one.config.inputs.name} {one.config.inputs.sha256[:19]}",
        "bundles.preprocess": lambda one: ", ".join(sorted({each.preprocess[:12] for each in one.bundles})),
    }
    found = [(name, get(a), get(b)) for name, get in fields.items()]
    return [f"{name}: {one} and {other}" for name, one, other in found if one != other]


def refuse_unlike(a: Record, b: Record) -> None:
    """
    Raises:
        UsageError: naming every field that differs, or that the two have no artifact in common.
    """
    if found := differences(a, b):
        raise UsageError(
            f"the runs are not alike, so that their times cannot be compared: {'; '.join(found)}",
            hint="measure both on one device, with the same inputs, scenarios and threads",
        )
    if not any(compare(a, b)):
        raise UsageError("the runs have no artifact and stage in common: there is nothing to compare")


def compare(a: Record, b: Record) -> list[Compared]:
    """Every stage that both have, of artifacts of one label that ran in both."""
    return list(_compared(a, b))


def _compared(a: Record, b: Record) -> Iterator[Compared]:
    others = {one.label: one for one in b.results}
    for one in a.results:
        other = others.get(one.label)
        for before in one.stages if other else ():
            after = other.stage(before.stage, before.batch) if other else None
            if after is not None:
                ratio = ratio_of(before, after)
                steady = all(_is_reliable(record, before.stage, before.batch) for record in (a, b))
                told = verdict(ratio, _ONE if steady else None, COARSE_MARGIN)
                yield Compared(one.label, before.stage, before.batch, before.p50_ms, after.p50_ms, ratio, told)


def ratio_of(before: Stage, after: Stage) -> Estimate:
    """Median by median, of runs that have nothing in common.

    Each median's error, on a logarithmic scale, is taken from its interval, or from its trials where they differ more.
    """
    value = after.p50_ms.value / before.p50_ms.value
    half = _Z * math.hypot(_error(before), _error(after))
    return Estimate(value, value * math.exp(-half), value * math.exp(half))


def _error(stage: Stage) -> float:
    inside = math.log(stage.p50_ms.high / stage.p50_ms.low) / (2 * _Z)
    trials = np.log(stage.trial_p50_ms)
    between = float(trials.std(ddof=1)) / math.sqrt(len(trials)) if len(trials) > 1 else 0.0
    return max(inside, between)


def _is_reliable(record: Record, stage: str, batch: int) -> bool:
    """Whether a run was long enough, and its controls passed."""
    controls = [one.passed for one in record.controls if (one.stage, one.batch) == (stage, batch)]
    return record.config.mode == "standard" and bool(controls) and all(controls)


Metric = Callable[[Result], Estimate | None]


def _tail(stage: str, name: str) -> Metric:
    def found(result: Result) -> Estimate | None:
        one = result.stage(stage)
        value: Estimate | None = getattr(one, name) if one else None
        return value

    return found


def _exact(get: Callable[[Result], float | None]) -> Metric:
    def found(result: Result) -> Estimate | None:
        value = get(result)
        return None if value is None else Estimate(value, value, value)

    return found


def _most_images(result: Result) -> Estimate | None:
    best = tabulated.best_throughput(result)
    return best.per_s if best else None


METRICS: dict[str, Metric] = {
    **{name: _tail("image_encode", name) for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")},
    **{f"text_{name}": _tail("text_encode", name) for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")},
    **{f"e2e_{name}": _tail("e2e_image", name) for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")},
    "images_per_s": _most_images,
    "load_ms": _exact(lambda one: float(np.median(one.load_ms)) if one.load_ms else None),
    "first_ms": _exact(lambda one: float(np.median(one.first_ms)) if one.first_ms else None),
    "cold_ms": lambda one: one.cold.start_ms if one.cold else None,
    "size_mb": _exact(lambda one: one.size_bytes / 1e6),
    "peak_rss_mb": _exact(lambda one: one.memory.peak_rss_mb if one.memory else None),
    "cosine_min": _exact(tabulated.cosine_min),
    "top1": tabulated.mean_top1,
}
"""What a bound may be set for; `p50_ms` and its like are of one image whose pixels are ready."""


@dataclass(frozen=True)
class Bound:
    """What a metric of every artifact must reach, or must not exceed."""

    metric: str
    value: float
    is_floor: bool

    @classmethod
    def parse(cls, text: str, *, is_floor: bool) -> Bound:
        """From `METRIC=NUMBER`.

        Raises:
            UsageError: it is not that, or nothing is measured under that name.
        """
        metric, _, number = text.partition("=")
        if metric not in METRICS:
            raise UsageError(f"a bound for {metric!r}, which is not measured", hint=f"one of: {', '.join(METRICS)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"{text!r} is not METRIC=NUMBER")
        return cls(metric, value, is_floor)

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.is_floor else '<='} {self.value:g}"


@dataclass(frozen=True)
class Held:
    """An artifact and a bound."""

    label: str
    bound: Bound
    measured: Estimate | None
    passed: bool
    """What was not measured does not pass."""


def hold(record: Record, bounds: Sequence[Bound]) -> list[Held]:
    """Every artifact against every bound; one that did not run passes none, one that was skipped is left out."""
    return [_held(one, bound) for bound in bounds for one in record.results if one.status != "skipped"]


def _held(result: Result, bound: Bound) -> Held:
    measured = METRICS[bound.metric](result) if result.status != "failed" else None
    if measured is None:
        return Held(result.label, bound, None, False)
    passed = measured.value >= bound.value if bound.is_floor else measured.value <= bound.value
    return Held(result.label, bound, measured, passed)
