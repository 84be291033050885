"""Percentiles, verdicts and flags of the latency suite."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from edgeclip.benchmarks import percentiles, selftest, timing
from edgeclip.benchmarks.summary import Cells
from edgeclip.benchmarks.timing import Estimate, Warmth
from edgeclip.benchmarks.trial import CONTROL, Rounds, Trial, Turn
from edgeclip.benchmarks.verdict import COARSE_MARGIN, MARGIN, margin_of, verdict

GOOD = Estimate(1.0, 0.99, 1.01)
CELL = "image_encode", 1


def rounds(seed: int, factor: float = 1.0, count: int = 60, calls: int = 10, rise: float = 0.0) -> Rounds:
    """Turns of one process, a round a second; of 10 ms a call with a noise of 2 %."""
    rng = np.random.default_rng(seed)

    def turn(at: float) -> Turn:
        level = 0.010 * factor * (1 + rise * at / count)
        return Turn(at, list(level * (1 + 0.02 * rng.standard_normal(calls))))

    return [(turn(float(i)), turn(i + 0.5)) for i in range(count)]


def trial(**found: Rounds) -> Trial:
    one = Trial((), 1, controlled=next(iter(found)))
    one.rounds[CELL] = dict(found)
    one.warmth[CELL] = {label: Warmth(1.0, 100, True) for label in found}
    return one


@pytest.mark.parametrize(("share", "needs"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_is_given_from_so_many_samples_on(share: float, needs: int) -> None:
    values = np.arange(needs, dtype=np.float64)
    assert percentiles.percentile(values, share) is not None
    assert percentiles.percentile(values[1:], share) is None


@pytest.mark.parametrize(("share", "needs"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_so_many_samples_are_what_99_percent_confidence_takes(share: float, needs: int) -> None:
    def chance(n: int) -> float:
        return share**n + n * (1 - share) * share ** (n - 1)

    assert chance(needs) <= 0.01 < chance(needs - 1)


def test_the_interval_of_a_percentile_holds_the_true_one_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(0.1)
    found = [percentiles.percentile(rng.exponential(size=200), 0.9) for _ in range(400)]
    held = [one is not None and one.low <= truth <= one.high for one in found]
    assert np.mean(held) >= 0.94


def test_early_stopping_lets_one_of_64_be_above() -> None:
    values = np.arange(1.0, 65.0)
    assert percentiles.early_stopping(values) == 63.0
    assert percentiles.early_stopping(values[:63]) is None


def test_early_stopping_is_an_upper_bound_in_99_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    truth = -math.log(0.1)
    bounds = [percentiles.early_stopping(rng.exponential(size=300)) for _ in range(500)]
    assert np.mean([bound is not None and bound >= truth for bound in bounds]) >= 0.98


def test_drift_is_the_change_over_the_whole_time_and_outliers_do_not_move_it() -> None:
    times = np.arange(50.0)
    values = 1 + 0.1 * times / 49
    values[7] = 100
    assert percentiles.drift(times.tolist(), values.tolist()) == pytest.approx(0.1 / 1.05, rel=0.02)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Estimate(0.8, 0.75, 0.85), "faster"),
        (Estimate(1.2, 1.1, 1.3), "slower"),
        (Estimate(1.0, 0.99, 1.01), "equal"),
        (Estimate(1.015, 1.01, 1.03), "undecided"),
        (Estimate(0.9, 0.7, 1.1), "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval(ratio: Estimate, said: str) -> None:
    assert verdict(ratio, GOOD, MARGIN) == said


@pytest.mark.parametrize("control", [None, Estimate(1.03, 1.025, 1.035), Estimate(0.9, 0.85, 0.97)])
def test_nothing_is_ranked_without_a_control_that_passed(control: Estimate | None) -> None:
    assert verdict(Estimate(0.5, 0.49, 0.51), control, MARGIN) == "undecided (noisy)"


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.96, "undecided"), (0.93, "faster"), (1.04, "undecided"), (1.07, "slower")]
)
@pytest.mark.parametrize("control", [Estimate(1.01, 0.98, 1.06), Estimate(0.99, 0.94, 1.02)])
def test_nothing_is_ranked_by_less_than_equals_may_differ(ratio: float, said: str, control: Estimate) -> None:
    assert verdict(Estimate(ratio, ratio - 0.01, ratio + 0.01), control, MARGIN) == said


def test_few_processes_and_other_runs_cannot_tell_four_percent() -> None:
    four = Estimate(0.96, 0.955, 0.965)
    assert verdict(four, GOOD, MARGIN) == "faster"
    assert verdict(four, GOOD, COARSE_MARGIN) == "equal"


def test_two_percent_can_be_told_from_three_trials_on() -> None:
    assert [margin_of(trials) for trials in (1, 2, 3, 5)] == [COARSE_MARGIN, COARSE_MARGIN, MARGIN, MARGIN]


def test_fresh_processes_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat([1.0, 1.1, 1.2, 1.3, 1.4], 40)[:, None]
    samples = level * (1 + 0.01 * rng.standard_normal((200, 2)))
    one, five = timing.median(samples), timing.median(samples, trials=5)
    assert five.high - five.low > 2 * (one.high - one.low)


def test_a_ratio_within_rounds_is_known_better_where_the_speed_changes_from_round_to_round() -> None:
    rng = np.random.default_rng(0)
    speed = np.exp(0.3 * rng.standard_normal((100, 1)))
    a, b = (each * speed * (1 + 0.02 * rng.standard_normal((100, 2))) for each in (1.1, 1.0))
    paired, apart = timing.paired_ratio(a, b), timing.ratio(a, b)
    assert paired.inside(1.09, 1.11)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_ratio_within_rounds_is_right_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(2)
    found = [timing.paired_ratio(*np.exp(0.1 * rng.standard_normal((2, 40, 2)))) for _ in range(200)]
    assert np.mean([one.low <= 1 <= one.high for one in found]) >= 0.92


def test_calls_settle_when_two_windows_agree() -> None:
    times = itertools.chain([0.004] * 3, [0.002] * 1000)
    warmth = timing.settle(lambda: time.sleep(next(times)), least_s=0.02, window_s=0.01, most_s=2.0, least_calls=5)
    assert warmth.calls >= 5
    assert warmth.seconds >= 0.02


def test_calls_that_never_settle_end_with_their_time() -> None:
    pauses = (0.01 * 3**i for i in range(20))
    warmth = timing.settle(lambda: time.sleep(next(pauses)), least_s=0.0, window_s=0.0, most_s=0.1, least_calls=1)
    assert not warmth.steady


def test_an_equal_process_is_equal_and_a_slower_one_slower() -> None:
    cells = Cells(CELL, [trial(a=rounds(0), b=rounds(1), c=rounds(2, 1.1), **{CONTROL: rounds(3)})])
    assert cells.control() is not None and cells.control().passed  # type: ignore[union-attr]
    assert {one.b: one.verdict for one in cells.comparisons()} == {"b": "equal", "c": "slower"}


def test_a_control_of_what_has_failed_is_none() -> None:
    one = trial(a=rounds(0), b=rounds(1), **{CONTROL: rounds(3)})
    del one.rounds[CELL]["a"]
    assert Cells(CELL, [one]).control() is None


def test_what_failed_in_one_trial_is_in_no_comparison() -> None:
    cells = Cells(CELL, [trial(a=rounds(0), b=rounds(1)), trial(a=rounds(2))])
    assert cells.labels == ["a"]


def test_trials_of_unequal_length_count_alike() -> None:
    cells = Cells(CELL, [trial(a=rounds(0, count=60)), trial(a=rounds(1, 1.5, count=20))])
    assert cells.stage("a").n == (60 + 20) * 2 * 10
    assert cells.median_ms("a").value == pytest.approx(12.5, rel=0.05)
    assert cells.stage("a").trial_p50_ms == pytest.approx((10, 15), rel=0.02)


def test_a_run_that_rises_is_flagged() -> None:
    assert Cells(CELL, [trial(a=rounds(0))]).flags("a") == ()
    assert "drift" in Cells(CELL, [trial(a=rounds(0, rise=0.1))]).flags("a")


def test_a_run_that_jumps_is_flagged() -> None:
    jumps = [turns for pair in zip(rounds(0), rounds(1, 1.3), strict=True) for turns in pair]
    jumps = [(Turn(2.0 * i, a.seconds), Turn(2.0 * i + 0.5, b.seconds)) for i, (a, b) in enumerate(jumps)]
    assert "noisy" in Cells(CELL, [trial(a=jumps)]).flags("a")


def test_what_never_became_warm_is_flagged() -> None:
    one = trial(a=rounds(0))
    one.warmth[CELL]["a"] = Warmth(30.0, 100, False)
    assert Cells(CELL, [one]).flags("a") == ("not steady",)


def test_throughput_is_the_batch_by_its_median() -> None:
    one = Trial((), 1)
    one.rounds["image_encode", 8] = {"a": rounds(0)}
    one.warmth["image_encode", 8] = {"a": Warmth(1.0, 100, True)}
    found = Cells(("image_encode", 8), [one]).throughput("a", "image")
    assert found.per_s.value == pytest.approx(800, rel=0.02)
    assert found.per_s.low <= found.per_s.value <= found.per_s.high


def test_the_selftest_makes_a_call_a_tenth_slower() -> None:
    took: list[float] = []
    call = selftest.slowed(lambda: took.append(timing.elapsed(lambda: sum(range(200_000)))))
    assert timing.elapsed(call) >= (1 + selftest.SLOWDOWN) * took[0]


@pytest.mark.parametrize(("right", "said"), [(48, "48 of 50 = 96.0% [86.5%, 98.9%], at least 95%: PASS"), (47, "MISS")])
def test_the_selftest_tells_its_rates(right: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.told("found", [i < right for i in range(50)]) == (right == 48)
    assert said in capsys.readouterr().out
