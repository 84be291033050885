"""`tune` as it is used: real engines in real processes, measured for next to no time; and `load`, which goes by it."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import devicefile
from edgeclip.cli import main
from edgeclip.cpus import available_cpus
from edgeclip.loading import BUILT_IN
from tests import labelled, tuning
from tests.bundles import made_wrong
from tests.cli import document, environment, patched

TINY = """
from dataclasses import replace
from edgeclip.benchmarks import tuning
tuning.SCREENING = replace(
    tuning.SCREENING, seconds=0.02, queries=4, offline_s=0.01, warmup_s=0.0, window_s=0.005, most_warmup_s=0.01
)
tuning.FINAL = replace(tuning.SCREENING, mode="standard", trials=2)
"""
"""Code for `patched`."""
CRASHING = """
import functools
code = '''
import os, signal
from edgeclip.benchmarks import worker
deadly = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)
worker.Server.parity = deadly
worker.main(around=lambda call: deadly)
'''
tuning.Tuning = functools.partial(tuning.Tuning, commands={"LABEL": ("-c", code)})
"""
"""The process of one label dies of a real signal when it is first called."""


def tune(bundle: Path, folder: Path, *arguments: str | Path, code: str = TINY) -> CompletedProcess[str]:
    return patched(code, "tune", bundle, *arguments, env=environment(EDGECLIP_TUNED=str(folder)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of four classes."""
    return labelled.class_folders(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def run(tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What `tune` said of the tiny bundle, and the folder of device files."""
    folder = tmp_path_factory.mktemp("run") / "not" / "there"
    options = ("--target", "onnx", "--threads", "1", "--batch", "1,2", "--budget", "100")
    done = tune(tiny_bundle, folder, *options, "--eval", data, "--json")
    assert done.returncode == 0, done.stderr
    return document(done), folder


def test_every_contender_is_there_with_its_loss_and_its_speed(run: tuple[dict[str, Any], Path]) -> None:
    found = run[0]["contenders"]
    assert [one["label"] for one in found] == ["onnx fp32, 1 thread", "onnx fp16, 1 thread"]
    reference, half = (one["loss"] for one in found)
    assert reference == {"basis": "the reference", "bound_pt": 0.0, "drop_pt": 0.0, "n": 0}
    assert half["basis"] == "measured: top1 of colours, n 16" and 0 < half["bound_pt"] < 100
    assert sum(one["state"] == "chosen" for one in found) == 1
    for one in found:
        assert one["state"] in ("chosen", "kept", "dominated")
        assert one["image_ms"]["low"] <= one["image_ms"]["value"] <= one["image_ms"]["high"]
        assert list(one["images_per_s"]) == ["1", "2"] and one["text_ms"]["value"] > 0
        assert one["load_ms"] > 0 and one["peak_rss_mb"] > 30


def test_load_goes_by_the_file_and_embeds_as_the_explicit_call(
    run: tuple[dict[str, Any], Path], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder = run[0]["chosen"], run[1]
    monkeypatch.setenv("EDGECLIP_TUNED", str(folder))
    path = tuning.place(tiny_bundle)
    assert str(path) == run[0]["path"] and json.loads(path.read_bytes()) == chosen
    assert [file.name for file in folder.iterdir()] == [path.name]
    options = {name: chosen[name] for name in ("backend", "precision", "threads")}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), np.uint8)
    with edgeclip.load(tiny_bundle) as tuned, edgeclip.load(tiny_bundle, **options) as explicit:
        assert {name: getattr(tuned.info, name) for name in options} == options
        assert tuned.info.batch == chosen["batch"]
        assert tuned.info.reason.endswith(chosen["rule"])
        images = explicit.encode_image(pixels, batch_size=chosen["batch"])
        assert np.array_equal(tuned.encode_image(pixels), images)
        assert np.array_equal(tuned.encode_text(["a cat", "the ocean"]), explicit.encode_text(["a cat", "the ocean"]))


def test_nothing_within_the_budget_is_a_gate_and_writes_nothing(
    tiny_bundle: Path, data: Path, private_device_files: Path
) -> None:
    done = tune(tiny_bundle, private_device_files, "--target", "onnx", "--precision", "fp16", "--eval", data)
    assert done.returncode == 1
    assert "❎ over budget" in done.stdout and "allowed 0.5" in done.stdout
    assert "nothing is known to lose at most 0.5 points: onnx fp16, 1 thread may lose" in done.stderr
    assert not list(private_device_files.iterdir())


@pytest.mark.parametrize(
    "label",
    [pytest.param("onnx fp16 on openvino", marks=pytest.mark.nightly), "onnx fp16 on openvino, 1 thread"],
)
def test_one_that_dies_is_a_row_with_its_reason_and_the_rest_is_tuned(
    label: str, tmp_path: Path, private_device_files: Path
) -> None:
    """When it is examined, or when it is timed."""
    code = TINY + CRASHING.replace("LABEL", label)
    options = ("--quick", "--threads", "1", "--batch", "2", "-o", tmp_path / "device.json")
    done = tune(BUILT_IN, private_device_files, *options, code=code)
    assert done.returncode == 5
    assert "❌ failed" in done.stdout and "✅ chosen" in done.stdout
    assert f"1 of 2 contenders did not run; {label}: its process was killed by SIGSEGV" in done.stderr
    found = devicefile.read(tmp_path / "device.json")
    assert not list(private_device_files.iterdir())
    assert found is not None and (found.backend, found.threads, found.batch) == ("onnxruntime", 1, 2)


def test_one_that_computes_something_else_is_below_its_gate(tmp_path: Path, private_device_files: Path) -> None:
    wrong = made_wrong(BUILT_IN, tmp_path / "wrong.edgeclip")
    done = tune(wrong, private_device_files, "--quick", "--threads", "1")
    assert done.returncode == 1
    assert done.stdout.count("❎ below gate") == 2 and "image: cosine mean" in done.stdout
    assert not list(private_device_files.iterdir())


@pytest.mark.parametrize(
    ("options", "known"), [((), "golden vectors"), (("--eval", "x"), "its loss is to be measured")]
)
def test_a_dry_run_says_what_would_be_measured_and_writes_nothing(
    options: tuple[str, ...], known: str, private_device_files: Path, capsys: Any
) -> None:
    assert main(["tune", "--dry-run", "--threads", "1", *options]) == 0
    said = capsys.readouterr().out
    assert "onnx fp16, 1 thread" in said and known in said
    assert "batches 1, 8, 32; at least " in said and str(private_device_files) in said
    assert not list(private_device_files.iterdir())


def test_forget_removes_the_file_be_it_damaged(capsys: Any) -> None:
    path = tuning.keep(tuning.device_file())
    path.write_text("damaged")
    assert main(["tune", "--forget", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(path), "forgotten": True}
    assert not path.exists()
    assert main(["tune", "--forget"]) == 0
    assert f"{path}: there is none" in capsys.readouterr().out


def test_a_damaged_file_is_an_error_of_every_command_that_loads_by_it(photos: Path, capsys: Any) -> None:
    tuning.keep(tuning.device_file()).write_text("damaged")
    assert main(["classify", str(BUILT_IN), str(photos / "b.png"), "--labels", "cat,dog"]) == 4
    said = capsys.readouterr().err
    assert "the device file is damaged" in said and "--forget" in said


def test_what_measures_does_not_go_by_the_file(capsys: Any) -> None:
    tuning.keep(tuning.device_file()).write_text("damaged")
    assert main(["verify", str(BUILT_IN)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--threads", "0"), 2, "--threads: '0' is no number from 1 to"),
        (("--threads", str(available_cpus() + 1)), 2, "is no number from 1 to"),
        (("--batch", "1,x"), 2, "--batch: 'x' is no number from 1 to 32"),
        (("--batch", "64"), 2, "--batch: '64' is no number from 1 to 32"),
        (("--target", "openvino"), 2, "no artifact for: openvino"),
        (("--eval", "no"), 4, "no"),
        (("-o", "no/file.json"), 2, "does not exist"),
        (("-o", "b32.edgeclip"), 2, "is to be a .json file"),
        (("no.edgeclip",), 3, "no such file"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(arguments: tuple[str, ...], code: int, said: str, capsys: Any) -> None:
    assert main(["tune", *arguments]) == code
    assert said in capsys.readouterr().err


def test_without_a_folder_for_it_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("EDGECLIP_TUNED", "off")
    assert main(["tune"]) == 2
    assert "there is no folder for device files: EDGECLIP_TUNED=off" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGECLIP_TUNED", str(tmp_path / "file" / "tuned"))
    assert main(["tune"]) == 2
    assert "cannot be made" in capsys.readouterr().err
