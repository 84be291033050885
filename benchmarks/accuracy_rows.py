"""What an evaluation found: one row a number, and one for each number that is missing, with its reason."""

from __future__ import annotations

import msgspec

from edgeclip.benchmarks.embedding_child import Fault, Subject
from edgeclip.benchmarks.metrics import Metric
from edgeclip.benchmarks.suites import Found

SCHEMA = "edgeclip.accuracy/1"


class AccuracyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One number. Shares are in [0, 1]; drops are in percentage points, positive where the reference is better."""

    subject: Subject
    suite: str
    data: str
    metric: str
    """`top1`, `top5`, `mean_per_class_recall`, `mean_average_precision`, `image_to_text_r1`, …"""
    value: float
    low: float
    high: float
    """The 95 % interval."""
    n: int
    """Images."""
    group: str = ""
    """Of people, where rates are by group."""
    drop_pt: float | None = None
    drop_low_pt: float | None = None
    drop_high_pt: float | None = None
    """Against the reference on the same images, with its 95 % interval."""
    note: str = ""


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A result that there is not."""

    artifact: str
    """As it was asked for, or as it is called."""
    suite: str
    data: str = ""
    """Empty where nothing ran at all."""
    fault: Fault


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The root of the JSON document, and the accuracy part of a report."""

    schema: str = SCHEMA
    suite: str
    reference: Subject | None = None
    rows: tuple[AccuracyRow, ...] = ()
    missing: tuple[Missing, ...] = ()
    remarks: tuple[str, ...] = ()


def row(subject: Subject, suite: str, found: Found, reference: Metric | None = None) -> AccuracyRow:
    """A row of a metric, with what it lost against a reference's."""
    interval = found.of.interval()
    loss = found.of.loss(reference) if reference is not None else None
    return AccuracyRow(
        subject=subject,
        suite=suite,
        data=found.data,
        metric=found.metric,
        value=found.of.value,
        low=interval.low,
        high=interval.high,
        n=found.of.n,
        group=found.group,
        drop_pt=loss.drop_pt if loss else None,
        drop_low_pt=loss.low_pt if loss else None,
        drop_high_pt=loss.high_pt if loss else None,
        note=found.note,
    )
