"""`bench`, `report` and `compare` as they are used: real engines in real processes, measured for next to no time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from edgeclip.benchmarks import record, suite
from edgeclip.benchmarks.inputs import generated
from edgeclip.benchmarks.rows import rows_of
from edgeclip.benchmarks.workers import Worker
from edgeclip.bundle import Bundle
from edgeclip.cli.bench import SCENARIOS, check_embeddable
from edgeclip.errors import TargetLoadError, UsageError
from edgeclip.loading import BUILT_IN
from tests import benching
from tests.bundles import made_wrong, write_directory
from tests.cli import document, edgeclip, patched

CRASHING = """
import functools
code = '''
import os, signal
from edgeclip.benchmarks import worker
def deadly(call):
    left = [5]
    def counted():
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGSEGV)
        return call()
    return counted
worker.main(around=deadly)
'''
suite.Suite = functools.partial(suite.Suite, commands={"onnx fp16 on openvino": ("-c", code)})
"""
"""Code for `patched`: the process of one artifact dies of a real signal while it is timed."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of the built-in model, `r.html` and so on, and of the bundle that it was put into."""
    folder = tmp_path_factory.mktemp("run")
    bundle = shutil.copy(BUILT_IN, folder / "b.edgeclip")
    scenarios = [option for name in SCENARIOS for option in ("--scenario", name) if name != "multi-stream"]
    done = patched(benching.TINY, "bench", bundle, "--quick", *scenarios, "--report", folder / "r.html", "--embed")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout, encoding="utf-8")
    return folder


def test_every_artifact_that_runs_here_is_measured_in_every_stage(run: Path) -> None:
    found = record.read(run / "r.json")
    assert [(one.label, one.status) for one in found.results] == [("onnx fp16", "ok"), ("onnx fp16 on openvino", "ok")]
    for one in found.results:
        assert [stage.stage for stage in one.stages] == ["image_encode", "text_encode", "e2e_image", "e2e_text"]
        assert {(each.tower, each.batch) for each in one.throughput} == {
            (t, b) for t in ("image", "text") for b in (1, 2)
        }
        assert one.cold is not None and one.cold.n == 2 and one.cold.peak_rss_mb > 30
        assert one.memory is not None and one.memory.peak_rss_mb > one.memory.base_rss_mb > 10
        assert one.parity is not None and min(one.parity.image_cosines) > 0.999
        assert one.load_ms[0] > 0 and one.first_ms[0] > 0
        assert one.sustained is not None and one.sustained.n > 0 and one.sustained.moments[0].p50_ms > 0
    assert [stage.stage for stage in found.bundles[0].host] == ["decode", "preprocess", "tokenize", "similarity"]
    assert len(found.controls) == len(found.comparisons) == 6


def test_the_table_has_a_row_for_each_and_the_remark_that_it_was_quick(run: Path) -> None:
    text = (run / "stdout").read_text(encoding="utf-8")
    assert "✅ ok" in text and "onnx fp16 on openvino" in text
    assert "control A/A" in text
    assert "Quick: too short to compare runs by." in text


def test_a_report_is_drawn_again_byte_for_byte(run: Path, tmp_path: Path) -> None:
    for form in ("html", "md"):
        assert edgeclip("report", run / "r.json", "-o", tmp_path / f"again.{form}").returncode == 0
        assert (tmp_path / f"again.{form}").read_bytes() == (run / f"r.{form}").read_bytes()


def test_the_record_is_in_the_bundle_and_the_model_is_what_it_was(run: Path) -> None:
    bundle = Bundle.open(run / "b.edgeclip")
    assert bundle.read("benchmark.json") == (run / "r.json").read_bytes()
    assert bundle.manifest.artifacts == Bundle.open(BUILT_IN).manifest.artifacts


def test_a_run_beside_itself_has_no_winner(run: Path) -> None:
    done = edgeclip("compare", run / "r.json", run / "r.json", "--json")
    assert done.returncode == 0, done.stderr
    assert {one["verdict"] for one in document(done)["comparisons"]} == {"undecided (noisy)"}


def test_unlike_runs_are_refused_with_the_fields_that_differ(run: Path, tmp_path: Path) -> None:
    plain = json.loads((run / "r.json").read_bytes())
    plain["config"]["threads"] += 1
    (tmp_path / "other.json").write_text(json.dumps(plain))
    done = edgeclip("compare", run / "r.json", tmp_path / "other.json")
    assert done.returncode == 2
    assert f"config.threads: {plain['config']['threads'] - 1} and {plain['config']['threads']}" in done.stderr


@pytest.mark.parametrize(("bound", "code"), [(("--ceiling", "size_mb=8"), 0), (("--ceiling", "size_mb=7"), 1)])
def test_a_bound_is_a_gate(run: Path, bound: tuple[str, str], code: int) -> None:
    done = edgeclip("compare", run / "r.json", *bound)
    assert done.returncode == code
    assert ("2 of 2 bounds are broken; onnx fp16: size_mb <= 7, 7.379" in done.stderr) == bool(code)


def test_a_process_that_dies_is_a_row_with_its_reason_and_the_rest_completes(tmp_path: Path) -> None:
    done = patched(
        benching.TINY + CRASHING, "bench", "--quick", "--scenario", "single-stream", "--report", tmp_path / "r.html"
    )
    assert done.returncode == 5
    assert "❌ failed" in done.stdout
    assert "1 of 2 artifacts did not run; onnx fp16 on openvino: its process was killed by SIGSEGV" in done.stderr
    good, bad = record.read(tmp_path / "r.json").results
    assert good.status == "ok" and len(good.stages) == 4
    assert bad.status == "failed" and "SIGSEGV (signal 11)" in bad.reason
    assert not bad.stages


@pytest.mark.nightly
def test_processes_that_do_not_fit_into_memory_together_run_in_groups(tiny_bundle: Path, tmp_path: Path) -> None:
    little = "suite.Suite = __import__('functools').partial(suite.Suite, memory_mb=0.0)\n"
    options = ("--precision", "fp32", "--target", "onnx,openvino", "--scenario", "multi-stream", "--quick")
    done = patched(benching.TINY + little, "bench", tiny_bundle, tiny_bundle, *options, "--report", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    found = record.read(tmp_path / "r.json")
    assert [one.label for one in found.results] == [
        *("tiny onnx fp32", "tiny openvino fp32", "tiny 2 onnx fp32", "tiny 2 openvino fp32"),
    ]
    assert all(len(one.stages) == 2 for one in found.results)
    assert len(found.controls) == len(found.comparisons) == 6
    assert {one.a for one in found.comparisons} == {"tiny onnx fp32"}


@pytest.mark.nightly
def test_the_checkpoint_in_pytorch_is_a_row(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    options = ("--target", "onnx", "--precision", "fp32", "--scenario", "single-stream", "--quick")
    found = document(patched(benching.TINY, "bench", tiny_bundle, *options, "--reference", tiny_checkpoint, "--json"))
    ours, eager = found["results"]
    assert eager["label"] == "PyTorch eager" and eager["status"] == "ok"
    assert eager["engine"].startswith("torch ")
    assert min(eager["parity"]["image_cosines"] + eager["parity"]["text_cosines"]) > 0.99999
    assert [one["stage"] for one in eager["stages"]] == [one["stage"] for one in ours["stages"]]


def test_an_artifact_that_computes_something_else_is_below_its_gate(tmp_path: Path) -> None:
    wrong = made_wrong(BUILT_IN, tmp_path / "wrong.edgeclip")
    done = patched(benching.TINY, "bench", wrong, "--scenario", "multi-stream", "--quick")
    assert done.returncode == 1
    assert "❎ below gate" in done.stdout
    assert "below their gate; onnx fp16: image: cosine mean" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("bench", "--target", "openvino"), 2, "no artifact for: openvino"),
        (("bench", "--target", "metal"), 2, "unknown target 'metal'"),
        (("bench", "no.edgeclip"), 3, "no such file"),
        (("bench", "--quick", "--seconds", "5"), 2, "exclude each other"),
        (("bench", "--report", "r.txt"), 2, "a report is a .html file"),
        (("bench", "--report", "no/r.html"), 2, "does not exist"),
        (("bench", "--accuracy", "no.json"), 2, "cannot be read"),
        (("bench", "--reference", "no.pt"), 2, "no such checkpoint"),
        (("bench", "--images", "no"), 4, "no"),
        (("bench", "--embed"), 2, "would change the built-in model"),
        (("report", "no.json", "-o", "r.html"), 2, "cannot be read"),
        (("report", "no.json", "-o", "r.pdf"), 2, "unknown form '.pdf'"),
        (("compare", "a.json"), 2, "two reports, or one and bounds"),
        (("compare", "a.json", "--floor", "speed=1"), 2, "'speed', which is not measured"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(arguments: tuple[str, ...], code: int, said: str, capsys: Any) -> None:
    from edgeclip.cli import main

    assert main(arguments) == code
    assert said in capsys.readouterr().err


def test_a_record_may_be_put_into_a_bundle_that_is_a_folder(tmp_path: Path) -> None:
    check_embeddable([write_directory(tmp_path / "folder")])


def test_a_picture_that_cannot_be_read_is_named_before_anything_runs(tmp_path: Path, capsys: Any) -> None:
    from edgeclip.cli import main

    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert main(["bench", "--quick", "--images", str(tmp_path)]) == 4
    assert f"{tmp_path / 'broken.jpg'}" in capsys.readouterr().err


def test_a_shorter_run_is_named_so_and_keeps_what_ranks() -> None:
    short = suite.STANDARD.shortened(15)
    assert (short.mode, short.seconds, short.offline_s, short.trials) == ("short", 15, 5, 3)
    assert short.pace(15).margin == suite.STANDARD.pace(60).margin
    assert suite.STANDARD.shortened(120).mode == "standard"


def test_without_jinja_the_extra_is_named(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeclip.cli import main, options

    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "jinja2" else name)
    assert main(["bench"]) == 5
    assert "needs jinja2, which is not installed" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_worker_that_is_killed_says_by_what(tmp_path: Path) -> None:
    [row, *_] = rows_of(Bundle.open(BUILT_IN), "b")
    worker = Worker(row)
    try:
        worker.load(generated(tmp_path, 1).paths, 1)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(TargetLoadError, match=r"its process was killed by SIGKILL \(signal 9\) \(turn\)"):
            worker.turn("image_encode", 1, discard=0, count=1000)
    finally:
        worker.close()


def test_an_error_of_a_worker_is_raised_here(tmp_path: Path) -> None:
    [row, *_] = rows_of(Bundle.open(BUILT_IN), "b")
    row.options["precision"] = "fp32"
    worker = Worker(row)
    try:
        with pytest.raises(UsageError, match="the bundle has no artifact for: onnxruntime fp32"):
            worker.load(generated(tmp_path, 1).paths, 1)
    finally:
        worker.close()
