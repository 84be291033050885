"""The benchmark's own arithmetic, order and reports. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgeclip.benchmarks import cold, environment, photographs, prepare, report, results, spine, timing
from edgeclip.benchmarks.calls import Contender
from edgeclip.benchmarks.report import Report
from edgeclip.benchmarks.results import AGAIN, Group
from edgeclip.benchmarks.sides import Agreement, _least
from edgeclip.benchmarks.timing import Estimate, Samples
from edgeclip.errors import TargetUnavailableError

BASE, OURS = "transformers", "openvino f32"


def noisy_samples(seed: int, rounds: int = 100, typical: float = 0.010) -> Samples:
    """Seconds, with a noise of 5 % and now and then an outlier."""
    rng = np.random.default_rng(seed)
    samples = typical * (1 + 0.05 * rng.standard_normal((rounds, 2)))
    samples[rng.random((rounds, 2)) < 0.05] *= 10
    return samples


def example(flags: tuple[str, ...] = ()) -> Group:
    """A group in which ours is three times faster than the peer."""
    a, b = noisy_samples(0) * 1e3, noisy_samples(1) * 1e3
    samples = {BASE: 3 * a, OURS: a, OURS + AGAIN: a}
    return results.group(
        "file/12", "File | embedding", "ms", samples | {"x": b}, missing={"bf16": "no bf16"}, flags=flags
    )


def example_report(mode: str = "standard") -> Report:
    group = example()
    goals = [
        results.goal("fast", 2.9, group, OURS),
        results.goal("faster", 3.1, group, OURS),
        results.goal("absent", 1.0, None, OURS),
    ]
    config = {"mode": mode, "threads": 2, "attention": "sdpa", "budget_s": 20.0, "min_queries": 15}
    agreement = [Agreement(OURS, 0.9999, 0.99999, 0.9)]
    return Report(environment.describe(2), config, agreement, [group], goals, [1.0], ["busy"])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_every_round_calls_every_contender_once_in_each_half(count: int) -> None:
    for number in range(2 * count):
        assert sorted(timing.order(count, number)) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7])
def test_each_contender_follows_each_other_equally_often(count: int) -> None:
    follows: Counter[tuple[int, int]] = Counter()
    for number in range(count):
        forth = timing.order(count, number)
        for half in (forth, forth[::-1]):
            follows.update(pairwise(half))
    assert len(follows) == count * (count - 1)
    assert set(follows.values()) == {2}


def test_a_round_goes_forth_and_back() -> None:
    called: list[str] = []
    timing.interleave({name: name for name in "abc"}, called.append, budget_s=0, min_queries=4, warmup=1)
    assert "".join(called) == "abc" + "abccba" + "bcaacb"


def test_observations_of_a_round_stay_together() -> None:
    counter = iter(range(100))
    found = timing.interleave({"a": None, "b": None}, lambda _: next(counter), budget_s=0, min_queries=3, warmup=0)
    assert found == {"a": [(0, 3), (5, 6)], "b": [(1, 2), (4, 7)]}


def test_the_interval_of_a_slowdown_by_a_tenth_has_it_and_not_one() -> None:
    fast, slow = noisy_samples(0), 1.1 * noisy_samples(1)
    found = timing.ratio(slow, fast)
    assert found.inside(1.05, 1.15)
    assert found.low <= 1.1 <= found.high
    assert found.low > 1.0


def test_the_interval_of_two_alike_has_one() -> None:
    found = timing.ratio(noisy_samples(0), noisy_samples(1))
    assert found.low < 1.0 < found.high


def test_a_contender_against_itself_is_exactly_one() -> None:
    samples = noisy_samples(0)
    assert timing.ratio(samples, samples) == Estimate(1.0, 1.0, 1.0)


def test_drift_that_both_share_does_not_widen_the_interval() -> None:
    drift = np.linspace(1, 3, 100)[:, None]
    steady = np.full((100, 2), 0.01)
    found = timing.ratio(2 * steady * drift, steady * drift)
    assert found.inside(1.999, 2.001)


def test_the_bootstrap_is_the_same_every_time() -> None:
    a, b = noisy_samples(0), noisy_samples(1)
    assert timing.ratio(a, b) == timing.ratio(a, b)
    assert timing.median(a) == timing.median(a)


def test_samples_of_other_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples of the same rounds are expected, got \(100, 2\) and \(3, 2\)"):
        timing.ratio(noisy_samples(0), noisy_samples(0, rounds=3))


def test_the_ninetieth_percentile_needs_enough_samples() -> None:
    samples = np.arange(64, dtype=np.float64).reshape(32, 2)
    assert timing.p90(samples) == pytest.approx(56.7)
    assert timing.p90(samples[:31]) is None


def test_contenders_get_the_same_arguments_in_the_same_order() -> None:
    got: list[int] = []
    first = Contender(got.append, [1, 2, 3])
    for _ in range(4):
        first()
    second = first.again()
    second()
    assert got == [1, 2, 3, 1, 1]


def test_a_group_compares_with_its_first_contender() -> None:
    group = example()
    row = group.row(OURS)
    assert row is not None and row.ratio is not None
    assert row.ratio.value == pytest.approx(3.0)
    assert group.baseline == BASE
    assert group.control == Estimate(1.0, 1.0, 1.0)
    assert not group.flags
    assert group.row("bf16") is None


def test_a_control_that_is_not_one_flags_its_group() -> None:
    a = noisy_samples(0)
    group = results.group("k", "t", "s", {OURS: a, OURS + AGAIN: 1.03 * a})
    assert group.flags == ["noisy"]


def test_more_images_a_second_is_better() -> None:
    rate = np.full((4, 2), 100.0)
    group = results.group("folder", "t", "images/s", {BASE: rate, OURS: 2 * rate}, higher_is_better=True)
    row = group.row(OURS)
    assert row is not None
    assert row.ratio == Estimate(2.0, 2.0, 2.0)


def test_a_difference_is_held_against_a_greatest_value() -> None:
    bare = np.full((4, 2), 15.0)
    group = results.group("cli", "t", "ms", {"bare": bare, "help": bare + 30}, differences=True)
    assert results.goal("help", 60, group, "help", at_most=True).passed is True
    assert results.goal("help", 20, group, "help", at_most=True).passed is False
    assert results.goal("help", 20, group, "help", at_most=True).bound == "<= 20 ms"


def test_a_goal_that_was_not_measured_is_neither_passed_nor_missed() -> None:
    assert results.goal("g", 1.0, example(), "bf16").passed is None


def test_a_verdict_says_what_disturbed_it() -> None:
    group = example(flags=("busy: others took 1.0 CPUs",))
    text = report.to_markdown(
        Report(environment.describe(1), example_report().config, goals=[results.goal("g", 1.0, group, OURS)])
    )
    assert "PASS (busy: others took 1.0 CPUs)" in text


def test_the_json_report_has_all_parts() -> None:
    document = json.loads(report.to_json(example_report()))
    assert document["schema"] == "edgeclip.spine/1"
    assert {"env", "config", "results", "controls", "flags", "goals"} <= set(document)
    row = document["results"][0]["rows"][1]
    assert row["contender"] == OURS
    assert row["n"] == 200
    assert row["ratio"]["value"] == pytest.approx(3.0)
    assert set(row["p50"]) == {"value", "low", "high"}
    assert [goal["passed"] for goal in document["goals"]] == [True, False, None]


def test_the_markdown_report_shows_goals_and_rows() -> None:
    text = report.to_markdown(example_report())
    assert "| fast | >= 2.9x | 3.00x | 3.00 – 3.00 | PASS |" in text
    assert "| MISS |" in text
    assert "| not measured |" in text
    assert "| bf16 |  |  |  |  |  |  | no bf16 |" in text
    assert "control A/A 1.000 [1.000 – 1.000]" in text
    assert "Quick" not in text


def test_a_quick_report_says_that_it_is_not_comparable() -> None:
    assert "**Quick: not comparable.**" in report.to_markdown(example_report("quick: not comparable"))


def test_the_terminal_gets_every_table() -> None:
    stream = io.StringIO()
    report.to_terminal(example_report(), stream)
    for title in ("Goals", "File | embedding", "Cosine with transformers"):
        assert title in stream.getvalue()


def test_both_reports_are_written(tmp_path: Path) -> None:
    written = report.write(example_report(), tmp_path / "new")
    assert [path.name for path in written] == ["spine.json", "spine.md"]
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.1234, "0.123"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_environment_says_what_decides_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("HOME_SECRET", "x")
    found = environment.describe(3)
    assert {"cpu", "memory_mb", "os", "python", "packages", "threads", "variables"} <= set(found)
    assert {"model", "isa", "cores", "usable"} == set(found["cpu"])
    assert found["threads"] == {"edgeclip": 3, "transformers": 3}
    assert found["variables"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert "HOME_SECRET" not in found["variables"]
    assert found["packages"]["numpy"] == np.__version__
    json.dumps(found)


def test_our_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"_busy_s": iter([100.0, 107.0]), "_ours_s": iter([10.0, 15.0])}
    monkeypatch.setattr(environment, "_busy_s", lambda: next(clocks["_busy_s"]))
    monkeypatch.setattr(environment, "_ours_s", lambda: next(clocks["_ours_s"]))
    now = iter([0.0, 4.0])
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(now))
    assert environment.Others().share() == pytest.approx(0.5)


def test_a_folder_has_the_sizes_that_it_should() -> None:
    shots = photographs.plan_folder(500)
    assert Counter(shot.megapixels for shot in shots) == {0.3: 350, 2.0: 125, 12.0: 25}
    assert shots == photographs.plan_folder(500)
    assert len({shot.name for shot in shots}) == 500


def test_photographs_are_the_same_every_time_and_as_large_as_a_cameras(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    shots = photographs.plan_size(0.3, count=2)
    first = photographs.make(tmp_path / "a", shots)
    again = photographs.make(tmp_path / "b", shots)
    assert photographs.digest(first) == photographs.digest(again)
    assert first[0].read_bytes() != first[1].read_bytes()
    for path in first:
        assert 0.15 < path.stat().st_size / (640 * 480) < 0.6


def test_photographs_that_are_there_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    shots = photographs.plan_size(0.3, count=1)
    path = photographs.make(tmp_path, shots)[0]
    path.write_bytes(b"mine")
    assert photographs.make(tmp_path, shots)[0].read_bytes() == b"mine"


def test_captions_have_eight_to_fifteen_words_and_go_round() -> None:
    assert all(8 <= len(caption.split()) <= 15 for caption in prepare.CAPTIONS)
    assert prepare.captions(3, first=7) == [prepare.CAPTIONS[7], *prepare.CAPTIONS[:2]]


def test_a_process_is_measured() -> None:
    child = cold.run(cold.bare())
    assert child.wall_s > 0
    assert child.cpu_s > 0
    if Path("/proc/self/status").is_file():
        assert 3 < child.peak_mb < 100


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(TargetUnavailableError, match=r"a process that was to be timed failed: .*no such thing"):
        cold.run([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_the_least_cosine_is_that_of_the_worst_row() -> None:
    a = np.eye(2, dtype=np.float32)
    b = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert _least(a, b) == pytest.approx(0.8)


def test_every_part_is_run_by_something() -> None:
    assert set(spine.PARTS) == set(spine.WHOLE) | set(spine.IN_PROCESS)


def test_who_loads_one_tower_is_compared_with_who_loads_one_tower() -> None:
    one, two = np.full((4, 2), 1.0), np.full((4, 2), 2.0)
    samples = {
        spine.PEER: 3 * two,
        spine.PEER + spine.ONE_TOWER: 4 * one,
        spine.OURS: two,
        spine.OURS + spine.ONE_TOWER: one,
        spine.PEER + spine.BF16 + spine.ONE_TOWER: 5 * one,
        spine.OURS + spine.HALF + spine.BF16 + spine.ONE_TOWER: one,
    }
    both, image, half = spine._by_towers("cold/wall", "t", "s", samples, [])
    assert [row.ratio.value for group in (both, image, half) for row in group.rows if row.ratio] == [3.0, 4.0, 5.0]
    assert image.baseline == spine.PEER + spine.ONE_TOWER
    assert half.baseline == spine.PEER + spine.BF16 + spine.ONE_TOWER
