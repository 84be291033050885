"""Scores that `edgeclip eval --json` or `-o FILE` wrote, for the artifacts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeclip.benchmarks.accuracy_rows import AccuracyRow, Evaluation
from edgeclip.benchmarks.record import Accuracy
from edgeclip.benchmarks.rows import Row
from edgeclip.bundle import Bundle
from edgeclip.errors import UsageError

TOP1 = "top1"


def read(path: Path) -> tuple[AccuracyRow, ...]:
    """
    Raises:
        UsageError: it cannot be read, or is none of `edgeclip eval`.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evaluation).rows
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except msgspec.DecodeError as exc:
        raise UsageError(f"{path}: not what `edgeclip eval --json` writes: {exc}") from exc


def of(scores: Sequence[AccuracyRow], row: Row, bundle: Bundle) -> tuple[Accuracy, ...]:
    """Those of an artifact. Where its own backend was not scored, another's scores of the same files stand for it."""
    wanted = bundle.digest, row.target, row.precision, "f32", ""
    same = [one for one in scores if _key(one) == wanted]
    own = [one for one in same if one.subject.backend == row.backend]
    backend = own[0].subject.backend if own else same[0].subject.backend if same else ""
    found = [one for one in same if one.subject.backend == backend]
    return tuple(
        Accuracy(
            suite=one.suite,
            data=one.data,
            metric=one.metric,
            value=one.value,
            low=one.low,
            high=one.high,
            n=one.n,
            drop_pt=one.drop_pt,
        )
        for one in found
    )


def _key(score: AccuracyRow) -> tuple[str, str, str, str, str]:
    of = score.subject
    return of.bundle, of.target, of.precision, of.compute, score.group
