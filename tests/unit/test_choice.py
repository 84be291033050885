"""Which contender is best, on measurements that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeclip.benchmarks import choice
from edgeclip.benchmarks.contenders import Contender, Figures, Loss, Speed, expand, usual_threads
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.timing import Estimate


def speed(value: float, spread: float = 0.01, doubt: float | None = 0.05) -> Speed:
    return Speed(Estimate(value, value * (1 - spread), value * (1 + spread)), doubt)


def contender(
    label: str,
    ms: float,
    *,
    loss: float = 0.0,
    size: int = 10,
    threads: int = 1,
    rates: dict[int, float] | None = None,
    **options: Any,
) -> Contender:
    row = Row(label, "b", Path("b"), "onnx", "fp32", "onnxruntime", (), size)
    figures = Figures(
        image_ms=speed(ms, **options),
        text_ms=None,
        images_per_s={n: speed(rate, **options) for n, rate in (rates or {1: 1e3 / ms}).items()},
        load_ms=1.0,
        peak_rss_mb=1.0,
    )
    return Contender(row, threads, loss=Loss("made up", loss), figures=figures)


def test_the_fastest_wins_where_its_interval_is_its_own() -> None:
    found = choice.choose([contender("a", 10), contender("b", 8, loss=0.4)], "latency")
    assert (found.contender.label, found.rule) == ("b", "the lowest latency of one image")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"loss": 0.4, "threads": 1, "size": 1}, "the smaller loss"),
        ({"loss": 0.1, "threads": 4, "size": 1}, "the fewer threads"),
        ({"loss": 0.1, "threads": 2, "size": 20}, "the smaller size"),
        ({"loss": 0.1, "threads": 2, "size": 10}, "the order of the bundle"),
    ],
)
def test_of_equals_loss_then_threads_then_size_decide(other: dict[str, Any], why: str) -> None:
    """Equals are those whose intervals overlap, or whose difference is in doubt."""
    first = contender("a", 10, loss=0.1, threads=2, size=10)
    for spread, ms, doubt in ((0.2, 9.0, 0.05), (0.001, 9.8, 0.05), (0.001, 8.0, 0.3)):
        other_one = contender("b", ms, spread=spread, doubt=doubt, **other)
        pair = [first, other_one] if "order" in why else [other_one, first]
        found = choice.choose(pair, "latency")
        assert found.contender.label == "a"
        assert found.rule == f"2 cannot be told apart in latency: decided by {why}"


def test_nobody_is_called_the_fastest_where_the_control_failed() -> None:
    slow, fast = contender("a", 10, doubt=None), contender("b", 8, loss=0.4, doubt=None)
    found = choice.choose([fast, slow], "latency")
    assert found.contender.label == "a"
    assert found.rule == "the control failed, so that none of 2 is called the fastest: decided by the smaller loss"


def test_all_rules_that_it_took_are_named() -> None:
    three = [contender("a", 10, threads=2), contender("b", 10), contender("c", 10, loss=0.1)]
    found = choice.choose(three, "latency")
    assert found.contender.label == "b"
    assert found.rule.endswith("decided by the smaller loss, then the fewer threads")


def test_a_failed_control_takes_nothing_from_the_only_one() -> None:
    found = choice.choose([contender("a", 10, doubt=None)], "latency")
    assert found.rule == "the lowest latency of one image"


def test_for_throughput_the_best_batch_of_each_counts() -> None:
    a = contender("a", 10, rates={1: 100, 8: 150, 32: 140})
    b = contender("b", 12, rates={1: 83, 8: 120, 32: 200})
    found = choice.choose([a, b], "throughput")
    assert (found.contender.label, found.batch, found.rule) == ("b", 32, "the most images a second")


def test_for_size_latency_decides_between_equal_files() -> None:
    big, slow, fast = contender("a", 1, size=20), contender("b", 10), contender("c", 6, threads=2)
    found = choice.choose([big, slow, fast], "size")
    assert found.contender.label == "c"
    assert found.rule == "the smallest files, and the lowest latency with them"
    assert [one.label for one in choice.finalists([big, slow, fast], "size")] == ["b", "c"]


def test_the_smallest_batch_is_taken_of_those_that_are_as_good() -> None:
    figures = contender("a", 10, rates={1: 100, 8: 197, 32: 200}).figures
    assert figures is not None and choice.best_batch(figures) == 8


@pytest.mark.parametrize(("rates", "expected"), [({1: 1, 8: 9, 32: 2}, 32), ({1: 1, 8: 2}, 8), ({64: 1, 128: 2}, 64)])
def test_without_a_control_the_batch_stays_as_it_is(rates: dict[int, float], expected: int) -> None:
    figures = contender("a", 10, rates=rates, doubt=None).figures
    assert figures is not None and choice.best_batch(figures) == expected


def test_only_what_is_slower_by_half_with_certainty_is_out_of_the_race() -> None:
    a, b, c = contender("a", 10), contender("b", 15.2, spread=0.02), contender("c", 16)
    assert [one.label for one in choice.finalists([c, b, a], "latency")] == ["b", "a"]


def test_one_that_is_nowhere_better_is_dominated() -> None:
    best = contender("a", 8, loss=0.1, size=10)
    assert choice.dominating(contender("b", 10, loss=0.1, size=10), [best]) is best
    assert choice.dominating(best, [contender("b", 10), best]) is None


@pytest.mark.parametrize("better", [{"loss": 0.0}, {"size": 9}, {"rates": {32: 300.0}}])
def test_one_that_is_better_in_something_is_not(better: dict[str, Any]) -> None:
    best = contender("a", 8, loss=0.1, size=10)
    assert choice.dominating(contender("b", 10, **{"loss": 0.1, "size": 10} | better), [best]) is None


def test_differences_that_are_in_doubt_make_nobody_dominant() -> None:
    assert choice.dominating(contender("a", 10), [contender("b", 9.8)]) is None
    assert choice.dominating(contender("a", 10), [contender("b", 8, doubt=0.3)]) is None
    assert choice.dominating(contender("a", 10, spread=0.3), [contender("b", 8, spread=0.3)]) is None


def test_nothing_is_dominated_where_a_control_failed() -> None:
    assert choice.dominating(contender("a", 10), [contender("b", 5, doubt=None)]) is None
    assert choice.dominating(contender("a", 10, doubt=None), [contender("b", 5)]) is None


def test_threads_are_one_half_and_all() -> None:
    assert [usual_threads(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 3], [1, 4, 8]]


def test_an_engine_beside_the_cpu_has_all_threads() -> None:
    row = Row("t", "b", Path("b"), "tensorrt", "fp16", "tensorrt", (), 1)
    assert [(one.label, one.threads) for one in expand(row, [1, 4])] == [("t, 4 threads", 4)]
