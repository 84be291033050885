"""What a run has found: rows of numbers in groups, and the goals they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeclip.benchmarks import timing
from edgeclip.benchmarks.timing import Estimate, Samples

CONTROL = (0.98, 1.02)
"""Where the ratio of a contender to itself must lie, its whole interval."""
BUSY = 0.1
"""CPUs that other processes may take during a group."""
AGAIN = " again"
"""Ends the label of a control: the contender before it, called a second time."""


@dataclass(frozen=True)
class Row:
    """One contender of a group."""

    contender: str
    n: int = 0
    p50: Estimate | None = None
    p90: float | None = None
    """None where there are too few samples."""
    ratio: Estimate | None = None
    """How many times better than the baseline: above 1 where this one is faster, or smaller."""
    over: Estimate | None = None
    """How much more than the baseline, in the group's unit."""
    skipped: str = ""
    """Why there are no numbers."""


@dataclass(frozen=True)
class Group:
    """Contenders that did the same thing in the same rounds."""

    key: str
    title: str
    unit: str
    baseline: str
    rows: list[Row]
    control: Estimate | None = None
    """The ratio of a contender to itself."""
    flags: list[str] = field(default_factory=list)

    def row(self, contender: str) -> Row | None:
        """The row of a contender; None where it was not measured."""
        return next((row for row in self.rows if row.contender == contender and not row.skipped), None)


@dataclass(frozen=True)
class Goal:
    """A bound, and what was measured."""

    name: str
    bound: str
    measured: Estimate | None
    unit: str
    passed: bool | None
    """None where nothing was measured."""
    flags: list[str] = field(default_factory=list)
    """Of the group that it was measured in."""


def group(
    key: str,
    title: str,
    unit: str,
    samples: Mapping[str, Samples],
    *,
    missing: Mapping[str, str] | None = None,
    higher_is_better: bool = False,
    differences: bool = False,
    flags: Sequence[str] = (),
) -> Group:
    """Summarise samples, in the group's unit. The first contender is the baseline.

    Args:
        missing: label -> why it was not measured.
        differences: compare by how much more, not by how many times.
        flags: what is known to have disturbed the measurement.
    """
    baseline = next(iter(samples))
    rows = [
        _row(name, one, None if name == baseline else samples[baseline], higher_is_better, differences)
        for name, one in samples.items()
        if not name.endswith(AGAIN)
    ]
    rows += [Row(label, skipped=reason) for label, reason in (missing or {}).items()]
    control = next((_control(name, samples) for name in samples if name.endswith(AGAIN)), None)
    noisy = ["noisy"] if control is not None and not control.inside(*CONTROL) else []
    return Group(key, title, unit, baseline, rows, control, [*noisy, *flags])


def goal(name: str, bound: float, found: Group | None, contender: str, *, at_most: bool = False) -> Goal:
    """Hold a contender's ratio against a least value, or its difference against a greatest one."""
    row = found.row(contender) if found else None
    measured = (row.over if at_most else row.ratio) if row else None
    passed = None if measured is None else (measured.value <= bound if at_most else measured.value >= bound)
    unit = (f" {found.unit}" if found else "") if at_most else "x"
    words = f"{'<=' if at_most else '>='} {bound:g}{unit}"
    return Goal(name, words, measured, unit, passed, list(found.flags) if found and measured else [])


def find(groups: Sequence[Group], key: str) -> Group | None:
    """The group of a key."""
    return next((one for one in groups if one.key == key), None)


def _row(name: str, samples: Samples, base: Samples | None, higher: bool, differences: bool) -> Row:
    ratio = over = None
    if base is not None and differences:
        over = timing.difference(samples, base)
    elif base is not None:
        ratio = timing.ratio(samples, base) if higher else timing.ratio(base, samples)
    tail = None if higher else timing.p90(samples)
    return Row(name, int(samples.size), timing.median(samples), tail, ratio, over)


def _control(name: str, samples: Mapping[str, Samples]) -> Estimate:
    return timing.ratio(samples[name.removesuffix(AGAIN)], samples[name])
