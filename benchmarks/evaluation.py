"""Running a suite: every artifact in a process of its own, scored as soon as it has embedded the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeclip.benchmarks.accuracy_rows import AccuracyRow, Evaluation, Missing, row
from edgeclip.benchmarks.embedding_child import EngineSpec, Subject
from edgeclip.benchmarks.embedding_process import Embedded, embedded
from edgeclip.benchmarks.metrics import Metric
from edgeclip.benchmarks.suites import EFFECTIVE, RELATIVE, Found, NotFound, Robustness, Suite, SuiteName
from edgeclip.cli import progress
from edgeclip.cli.output import Output

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Runner:
    """A suite, and how it is run."""

    name: SuiteName
    suite: Suite
    output: Output
    """Where progress is shown."""
    cache: bool = True

    def evaluate(
        self,
        engines: Sequence[EngineSpec],
        reference: EngineSpec | None = None,
        missing: Sequence[Missing] = (),
    ) -> Evaluation:
        """Score every engine; what one of them cannot do is a `Missing`, and the others go on.

        Args:
            reference: what the others are held against, on the same images.
            missing: what is known to be missing.
        """
        rows: list[AccuracyRow] = []
        lacking = list(missing)
        remarks = list(self.suite.remarks)
        against, before = self._reference(reference, lacking) if reference is not None else (None, {})
        for engine in engines:
            with self._embedded(engine) as found:
                remarks += _said(found)
                for one in self._scored(engine, found):
                    if isinstance(one, Missing):
                        lacking.append(one)
                    else:
                        assert found.subject is not None
                        rows += self._rows(found.subject, one, before.get(one.key))
        return Evaluation(
            suite=self.name, reference=against, rows=tuple(rows), missing=tuple(lacking), remarks=tuple(remarks)
        )

    def _reference(self, engine: EngineSpec, missing: list[Missing]) -> tuple[Subject | None, dict[Key, Metric]]:
        """What the reference is, and its metrics."""
        before: dict[Key, Metric] = {}
        with self._embedded(engine) as found:
            for one in self._scored(engine, found):
                if isinstance(one, Missing):
                    missing.append(one)
                else:
                    before[one.key] = one.of
            return found.subject, before

    def _embedded(self, engine: EngineSpec) -> AbstractContextManager[Embedded]:
        return embedded(engine, self.suite.sets, cache=self.cache, quiet=self.output.quiet)

    def _scored(self, engine: EngineSpec, found: Embedded) -> Iterator[Found | Missing]:
        if found.answer.fault is not None:
            yield Missing(artifact=label(engine), suite=self.name, fault=found.answer.fault)
            return
        assert found.subject is not None
        with progress.steps(self.output) as begin:  # not before: the child shows its own
            for one in self.suite.score(found.__getitem__, begin):
                if isinstance(one, NotFound):
                    yield Missing(artifact=found.subject.label, suite=self.name, data=one.data, fault=one.fault)
                else:
                    yield one

    def _rows(self, subject: Subject, found: Found, before: Metric | None) -> Iterator[AccuracyRow]:
        one = row(subject, self.name, found, before)
        yield one
        is_shift = isinstance(self.suite, Robustness) and found.data != self.suite.original
        if is_shift and found.metric != EFFECTIVE and one.drop_pt is not None:
            yield relative(one)


def relative(shifted: AccuracyRow) -> AccuracyRow:
    """Relative robustness: what an accuracy on shifted data has above the reference's."""
    drop, low, high = shifted.drop_pt, shifted.drop_low_pt, shifted.drop_high_pt
    assert drop is not None and low is not None and high is not None
    return msgspec.structs.replace(
        shifted,
        metric=RELATIVE,
        value=-drop / 100,
        low=-high / 100,
        high=-low / 100,
        drop_pt=None,
        drop_low_pt=None,
        drop_high_pt=None,
        note="above the reference",
    )


def label(engine: EngineSpec) -> str:
    """What was asked for, in words."""
    return " ".join(filter(None, (Path(engine.bundle).name, engine.backend, engine.precision)))


def _said(found: Embedded) -> list[str]:
    answer = found.answer
    if answer.subject is None or not answer.found:
        return []
    return [f"{answer.subject.label}: {answer.found} of {answer.found + answer.computed} images were in the cache"]
