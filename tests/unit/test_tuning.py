"""Plans of tuning: who qualifies, and how long it takes, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeclip.benchmarks.contenders import Contender
from edgeclip.benchmarks.losses import references_of
from edgeclip.benchmarks.rows import rows_of
from edgeclip.benchmarks.suite import Budget
from edgeclip.benchmarks.tuning import FINAL, SCREENING, Tuning, expected_s
from edgeclip.bundle import Bundle
from edgeclip.loading import BUILT_IN
from tests.unit.test_choice import contender


def tuning(**changes: Any) -> Tuning:
    bundle = Bundle.open(BUILT_IN)
    rows = rows_of(bundle, "b")
    options = {"rows": rows, "references": references_of(rows), "threads": [1, 2], "batches": [1, 8]}
    return Tuning(bundle=bundle, budget_pt=0.5, goal="latency", **options | changes)  # type: ignore[arg-type]


def states(found: list[Contender]) -> list[str]:
    return [one.state for one in found]


def test_every_artifact_is_planned_on_every_engine_with_every_number_of_threads() -> None:
    assert [one.label for one in tuning().planned(with_data=False)] == [
        *("onnx fp16, 1 thread", "onnx fp16, 2 threads"),
        *("onnx fp16 on openvino, 1 thread", "onnx fp16 on openvino, 2 threads"),
    ]


def test_what_cannot_run_is_there_with_its_reason_and_what_was_asked_for_by_name_has_failed() -> None:
    first, *_ = tuning().rows
    rows = [replace(first, missing="needs X"), replace(first, missing="needs X", wanted=True)]
    rows = [replace(row, wanted=bool(i)) for i, row in enumerate(rows)]
    found = tuning(rows=rows).planned(with_data=False)
    assert states(found) == ["skipped", "failed"] and {one.reason for one in found} == {"needs X"}


def test_an_integer_artifact_that_nobody_measured_is_not_known() -> None:
    first, *_ = tuning().rows
    found = tuning(rows=[replace(first, precision="w8a8")], threads=[1]).planned(with_data=False)
    assert states(found) == ["not known"]
    assert found[0].reason == "nobody measured what w8a8 loses: name data with --eval"


def test_a_slower_one_takes_longer_and_a_longer_look_too() -> None:
    def seconds(ms: float, budget: Budget) -> float:
        return expected_s([contender("a", ms, rates={1: 1e3 / ms, 8: 1e3 / ms})], replace(budget, batches=(1, 8)))

    assert seconds(10, SCREENING) < seconds(1000, SCREENING) < seconds(1000, FINAL)
    assert expected_s([], SCREENING) == 0


class MadeUp(Tuning):
    """Measures nothing: `a` is the fastest, and dies in the longer look."""

    def _examine(self) -> None:
        found = [contender("a", 1), contender("b", 5), contender("c", 5, loss=0.1)]
        self.contenders = [replace(one, figures=None) for one in found]

    def _time(self, contenders: Sequence[Contender], budget: Budget) -> None:
        labels = {one.label for one in contenders}
        self.contenders = [self._made_up(one, budget) if one.label in labels else one for one in self.contenders]

    def _made_up(self, one: Contender, budget: Budget) -> Contender:
        if one.label == "a" and budget.mode == "standard":
            return one.marked("failed", "it died")
        return replace(one, figures=contender("", 1 if one.label == "a" else 5).figures)


def test_where_the_only_finalist_dies_the_next_are_looked_at() -> None:
    found = tuning()
    made_up = MadeUp(found.bundle, found.rows, found.references, [1], [1], 0.5, "latency")
    made_up.run()
    assert made_up.best is not None and made_up.best.contender.label == "b"
    assert states(made_up.contenders) == ["failed", "chosen", "dominated"]
