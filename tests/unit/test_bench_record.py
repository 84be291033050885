"""Records: their schema, their pages, what may be compared, and bounds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeclip.benchmarks import charts, comparison, page, publication, record, scored, tabulated
from edgeclip.benchmarks.comparison import Bound
from edgeclip.benchmarks.inputs import generated
from edgeclip.benchmarks.record import Inputs, Moment, Power, Sustained
from edgeclip.benchmarks.rows import rows_of
from edgeclip.benchmarks.suite import grouped
from edgeclip.bundle import Bundle
from edgeclip.cli.output import MARKS
from edgeclip.errors import UsageError
from edgeclip.loading import BUILT_IN
from tests import benching, bundles

RESOURCES = re.compile(r"(?:src|href|url\(|@import|https?:)")


def test_the_shipped_schema_is_that_of_the_structs() -> None:
    assert record.SCHEMA_FILE.read_bytes() == record.schema(), "run `python -m edgeclip.benchmarks.record`"


def test_the_schema_names_every_field_of_a_record() -> None:
    definitions = json.loads(record.schema())["$defs"]
    plain = json.loads(record.encode(benching.record()))
    assert definitions["Record"]["required"] == [
        *("schema", "created", "tool", "env", "config", "bundles", "results"),
    ]
    assert set(plain) == set(definitions["Record"]["properties"])
    assert definitions["Record"]["additionalProperties"] is False


def test_a_record_is_read_as_it_was_written() -> None:
    data = record.encode(benching.record())
    assert record.encode(record.decode(data)) == data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema="edgeclip.report/2"), "schema"),
        (lambda d: d.update(other=1), "unknown field `other`"),
        (lambda d: d["results"][0].pop("label"), "`label`"),
        (lambda d: d["results"][0].update(status="fine"), "status"),
        (lambda d: d["config"].update(threads="two"), "threads"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(tmp_path: Path, change: Any, said: str) -> None:
    plain = json.loads(record.encode(benching.record()))
    change(plain)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UsageError, match=f"not a report of edgeclip bench: .*{re.escape(said)}"):
        record.read(path)


def test_a_page_is_drawn_the_same_twice_and_fetches_nothing() -> None:
    found = record.decode(record.encode(full()))
    again = record.decode(record.encode(found))
    page = publication.to_html(found)
    assert publication.to_html(again) == page
    assert len(page.encode()) < 1_000_000
    assert not RESOURCES.search(page)
    assert "<script" not in page


def test_a_page_has_every_picture_and_is_well_formed() -> None:
    found = full()
    titles = [chart.title for chart in charts.charts(found)]
    assert titles == [
        "Latency of one image",
        "From a file to its embedding",
        "Latency, accuracy and size",
        "Throughput",
        "Differences that can be told from none",
        "Parity on this device",
        "Without a pause",
    ]
    page = publication.to_html(found)
    assert page.count("<svg viewBox=") == len(titles)
    Balanced().feed(page)


def test_names_are_text_and_never_markup() -> None:
    evil = "onnx fp32 <script>alert(1)</script>"
    page = publication.to_html(benching.record(benching.result(evil), benching.result("onnx fp16", 5.0)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_without_accuracy_the_picture_is_of_size_and_says_so() -> None:
    [chart] = [one for one in charts.charts(benching.record()) if "Latency and size" in one.title]
    assert "No accuracy was given" in chart.about


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (2.0, 2.5), (4.0, 4.0)]
    assert charts.frontier(points) == [0, 1, 4]


def test_a_failed_row_is_shown_with_its_reason_everywhere() -> None:
    failed = benching.result("openvino fp32", status="failed", reason="its process was killed", stages=())
    found = benching.record(benching.result(), failed)
    assert "❌ failed" in publication.to_markdown(found)
    assert "its process was killed" in publication.to_markdown(found)
    assert "openvino fp32: its process was killed" in publication.to_html(found)


def test_a_page_draws_the_signs_that_small_devices_have_no_font_for() -> None:
    assert set(page.SIGNS) == {*MARKS.values(), tabulated.SKIPPED}
    statuses = ("ok", "below gate", "failed", "skipped")
    drawn = publication.to_html(benching.record(*(benching.result(f"onnx {one}", status=one) for one in statuses)))
    assert drawn.count('<svg class="sign') == len(statuses) + 1  # and the failed one again at the top
    assert not any(sign in drawn for sign in page.SIGNS)


def test_a_page_of_failures_alone_can_be_drawn() -> None:
    failed = benching.result(status="failed", reason="x", stages=(), throughput=(), parity=None, memory=None)
    publication.to_html(msgspec.structs.replace(benching.record(failed), controls=(), comparisons=()))


def test_quick_runs_and_failed_controls_are_remarked_upon() -> None:
    remarks = tabulated.remarks(benching.record(config={"mode": "quick"}))
    assert remarks == [
        "Quick: too short to compare runs by.",
        "Nothing is ranked where the control failed: text encode at batch 1.",
    ]


@pytest.mark.parametrize(
    ("config", "env", "named"),
    [
        ({"threads": 4}, {}, "config.threads: 2 and 4"),
        ({"mode": "quick"}, {}, "config.mode: standard and quick"),
        ({"scenarios": ("offline",)}, {}, "config.scenarios"),
        ({}, {"fingerprint": f"sha256:{'9' * 64}"}, "env.fingerprint"),
        ({}, {"cpu": "another"}, "env.cpu: a CPU and another"),
        (
            {},
            {"power": Power(mode="15W", governor="x", battery=False, celsius=None)},
            "env.power.mode: unknown and 15W",
        ),
        ({"inputs": Inputs(name="mine", sha256=f"sha256:{'4' * 64}", images=1, texts=8)}, {}, "config.inputs"),
    ],
)
def test_unlike_runs_are_refused_and_the_fields_named(config: Any, env: Any, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        comparison.refuse_unlike(benching.record(), benching.record(config=config, env=env))


def test_every_field_that_differs_is_named() -> None:
    other = benching.record(config={"threads": 4, "mode": "quick"})
    assert len(comparison.differences(benching.record(), other)) == 2


def test_runs_without_a_common_artifact_are_refused() -> None:
    with pytest.raises(UsageError, match="no artifact and stage in common"):
        comparison.refuse_unlike(benching.record(benching.result()), benching.record(benching.result("coreml fp16")))


def test_a_slower_second_run_is_found_where_the_controls_passed() -> None:
    before = benching.record(benching.result(ms=10.0))
    after = benching.record(benching.result(ms=11.0))
    said = {one.stage: one.verdict for one in comparison.compare(before, after)}
    assert said["image_encode"] == "slower"
    assert said["text_encode"] == "undecided (noisy)"
    assert {one.verdict for one in comparison.compare(after, before) if one.stage == "image_encode"} == {"faster"}


def test_quick_runs_have_no_verdict() -> None:
    quick = [benching.record(benching.result(ms=ms), config={"mode": "quick"}) for ms in (10.0, 20.0)]
    assert {one.verdict for one in comparison.compare(*quick)} == {"undecided (noisy)"}


def test_trials_that_differ_widen_a_comparison() -> None:
    steady, uneven = benching.stage(), benching.stage(trial_p50_ms=(9.0, 11.0))
    narrow, wide = comparison.ratio_of(steady, steady), comparison.ratio_of(steady, uneven)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("text", "is_floor", "passes"),
    [
        ("p90_ms=12", False, True),
        ("p90_ms=10", False, False),
        ("top1=0.59", True, True),
        ("top1=0.61", True, False),
        ("size_mb=10", False, True),
        ("images_per_s=200", True, True),
        ("images_per_s=201", True, False),
        ("cosine_min=0.9999", True, True),
        ("cold_ms=1000", False, False),
    ],
)
def test_a_bound_holds_or_not_and_what_was_not_measured_does_not(text: str, is_floor: bool, passes: bool) -> None:
    found = benching.record(benching.result(accuracy=(benching.top1(),)))
    [held] = comparison.hold(found, [Bound.parse(text, is_floor=is_floor)])
    assert held.passed == passes


def test_images_a_second_keep_their_interval() -> None:
    [held, *_] = comparison.hold(benching.record(), [Bound.parse("images_per_s=1", is_floor=True)])
    assert held.measured is not None and held.measured.low < held.measured.value < held.measured.high


def test_an_artifact_that_failed_breaks_every_bound_and_one_that_was_skipped_none() -> None:
    rows = [benching.result(status="failed"), benching.result("coreml fp16", status="skipped")]
    held = comparison.hold(benching.record(*rows), [Bound.parse("p90_ms=1000", is_floor=False)])
    assert [(one.label, one.passed) for one in held] == [("onnx fp32", False)]


@pytest.mark.parametrize(
    ("text", "said"),
    [("p9_ms=3", "'p9_ms', which is not measured"), ("p90_ms=fast", "METRIC=NUMBER"), ("top1", "METRIC")],
)
def test_a_bound_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        Bound.parse(text, is_floor=True)


def test_top1_is_the_mean_over_data_sets() -> None:
    scores = (benching.top1(0.5), benching.top1(0.7, data="e"), benching.top1(0.1, metric="top5"))
    found = tabulated.mean_top1(benching.result(accuracy=scores))
    assert found is not None
    assert found.value == pytest.approx(0.6)
    assert found.high - found.value == pytest.approx(0.01 / 2**0.5)


def test_scores_find_their_artifacts(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "b.edgeclip")
    rows = {row.label: row for row in rows_of(bundle, "b")}
    path = tmp_path / "accuracy.json"
    path.write_text(
        json.dumps(
            {
                "schema": "edgeclip.accuracy/1",
                "suite": "quick",
                "rows": [
                    score(bundle.digest, "onnx", "fp32", "onnxruntime", 0.6),
                    score(bundle.digest, "onnx", "fp32", "openvino", 0.5),
                    score(bundle.digest, "onnx", "fp32", "onnxruntime", 0.4, group="a"),
                    score(bundle.digest, "onnx", "fp32", "onnxruntime", 0.3, compute="bf16"),
                    score(f"sha256:{'0' * 64}", "onnx", "fp32", "onnxruntime", 0.1),
                ],
            }
        )
    )
    scores = scored.read(path)
    assert [one.value for one in scored.of(scores, rows["onnx fp32"], bundle)] == [0.6]
    assert scored.of(scores, rows["openvino w8a8"], bundle) == ()


def test_a_file_that_has_no_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text('{"rows": [{"suite": 1}]}')
    with pytest.raises(UsageError, match="not what `edgeclip eval --json` writes"):
        scored.read(path)


def test_what_cannot_run_here_is_skipped_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    bundle = bundles.write(tmp_path / "b.edgeclip")
    [row] = [one for one in rows_of(bundle, "b") if one.target == "coreml"]
    assert "needs macOS" in row.missing and not row.wanted
    [row] = rows_of(bundle, "b", targets=["coreml"])
    assert row.wanted


def test_rows_that_do_not_fit_into_memory_together_share_the_first(tmp_path: Path) -> None:
    rows = rows_of(bundles.write(tmp_path / "b.edgeclip"), "b")
    assert len(rows) == 4  # each takes 250 MB
    assert [[row.label for row in group.rows] for group in grouped(rows, 2000.0)] == [[row.label for row in rows]]
    found = [[rows.index(row) for row in group.rows] for group in grouped(rows, 1100.0)]
    assert found == [[0, 1, 2], [0, 3]]
    assert [len(group.rows) for group in grouped(rows, 0.0)] == [2, 2, 2]


def test_another_backend_runs_what_the_bundle_has_nothing_of_its_own_for() -> None:
    labels = [row.label for row in rows_of(Bundle.open(BUILT_IN), "b")]
    assert labels == ["onnx fp16", "onnx fp16 on openvino"]


def test_an_artifact_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no artifact for: openvino"):
        rows_of(Bundle.open(BUILT_IN), "b", targets=["openvino"])


def test_generated_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = generated(tmp_path / "a", 2), generated(tmp_path / "b", 2)
    assert one.described == other.described
    assert [path.read_bytes() for path in one.paths] == [path.read_bytes() for path in other.paths]
    assert generated(tmp_path / "a", 1).described != one.described


def score(
    digest: str, target: str, precision: str, backend: str, value: float, group: str = "", compute: str = "f32"
) -> dict[str, Any]:
    """A row as `edgeclip eval` writes it."""
    subject = {"name": "b", "bundle": digest, "target": target, "precision": precision, "backend": backend}
    subject |= {"engine_version": "1", "device": "cpu", "compute": compute}
    return {
        "subject": subject,
        "suite": "quick",
        "data": "d",
        "metric": "top1",
        "value": value,
        "low": value,
        "high": value,
        "n": 10,
        "group": group,
        "drop_pt": None,
        "note": "",
    }


def full() -> record.Record:
    """A record with everything that can be drawn."""
    moments = tuple(Moment(at_s=float(i), p50_ms=10.0 + i, celsius=50.0 + i) for i in range(5))
    sustained = Sustained(seconds=5.0, n=400, first_ms=10.0, last_ms=14.0, moments=moments, flags=("drift",))
    accuracy = (benching.top1(),)
    rows = [benching.result(accuracy=accuracy, sustained=sustained)]
    rows += [benching.result(f"openvino {p}", ms, accuracy=accuracy) for p, ms in (("fp32", 8.0), ("w8a8", 3.0))]
    return benching.record(*rows)


class Balanced(HTMLParser):
    """Raises where a tag is closed that is not open."""

    VOID = ("meta", "br", "line", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag
