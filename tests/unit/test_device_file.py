"""The device file: read strictly, used by `load` where it applies and where nothing else was named, and never elsewhere."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import benchmarks, devicefile
from edgeclip.cli.options import Engine
from edgeclip.errors import DeviceFileError
from tests import tuning


def chosen(**options: Any) -> edgeclip.Model:
    with edgeclip.load(**options) as model:
        return model


def test_what_is_written_is_read() -> None:
    file = tuning.device_file()
    assert devicefile.read(tuning.keep(file)) == file


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert devicefile.read(tmp_path / "absent.json") is None
    assert not devicefile.forget(tmp_path / "absent.json")


def test_load_takes_backend_precision_threads_and_batch_from_it() -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    info = chosen().info
    assert (info.backend, info.precision, info.threads, info.batch) == ("openvino", "fp16", 1, 3)
    assert info.reason == "`edgeclip tune` chose it for latency on 2026-01-31: the lowest latency"


def test_without_one_load_chooses_as_ever() -> None:
    info = chosen().info
    assert (info.backend, info.batch) == ("onnxruntime", 32)
    assert info.reason.startswith("first of onnxruntime fp16")


def test_threads_that_are_named_win_and_the_rest_holds() -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    info = chosen(threads=2).info
    assert (info.backend, info.threads, info.batch) == ("openvino", 2, 3)
    assert "with threads=1, where 2 was asked for" in info.reason


@pytest.mark.parametrize(("option", "value"), [("backend", "onnxruntime"), ("precision", "fp16"), ("device", "cpu")])
def test_what_else_is_named_sets_it_aside_altogether(option: str, value: str) -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    info = chosen(**{option: value}).info
    assert (info.backend, info.batch) == ("onnxruntime", 32)
    assert info.threads == devicefile.machine("onnxruntime").cpus
    assert info.reason.endswith(f"; {option} named, so that the device file is set aside")


def test_it_can_be_ignored() -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    info = chosen(tuned=False).info
    assert info.backend == "onnxruntime" and "tune" not in info.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "Another CPU"}, "the CPU was Another CPU, is "),
        ({"cpus": 4096}, "the number of CPUs was 4096, is "),
        ({"engine_version": "0.0.1"}, "the engine version was 0.0.1, is "),
        ({"accelerator": "A GPU"}, "the accelerator was A GPU, is none"),
    ],
)
def test_that_of_another_device_or_engine_is_set_aside(changes: dict[str, Any], said: str) -> None:
    path = tuning.keep(tuning.elsewhere(**changes))
    info = chosen().info
    assert (info.threads, info.batch) == (devicefile.machine("onnxruntime").cpus, 32)
    assert f"the device file {path} is set aside: {said}" in info.reason


def test_that_of_another_bundle_is_set_aside() -> None:
    other = f"sha256:{'0' * 64}"
    tuning.keep(tuning.device_file(bundle=other))
    assert f"it is of another bundle, {other}" in chosen().info.reason


def test_that_of_a_backend_that_is_no_more_is_set_aside() -> None:
    tuning.keep(tuning.device_file(backend="onnxruntime", machine=devicefile.machine("onnxruntime")))
    path = tuning.place()
    path.write_text(path.read_text().replace('"backend": "onnxruntime"', '"backend": "gone"'))
    assert "is set aside: there is no backend gone" in chosen().info.reason


def test_one_tower_is_loaded_by_it_too() -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    info = chosen(tower="image").info
    assert (info.backend, list(info.artifacts)) == ("openvino", ["image"])


def test_a_pickled_model_is_made_again_as_it_was() -> None:
    path = tuning.keep(tuning.device_file(backend="openvino"))
    with edgeclip.load() as model:
        path.unlink()
        with pickle.loads(pickle.dumps(model)) as again:
            assert again.info == model.info


def test_images_are_run_in_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.keep(tuning.device_file(batch=3))
    pixels = np.zeros((7, 8, 8, 3), np.uint8)
    with edgeclip.load() as model:
        assert [len(batch.indices) for batch in model.stream_image(pixels)] == [3, 3, 1]
        assert [len(batch.indices) for batch in model.stream_image(pixels, batch_size=4)] == [4, 3]
        with pytest.raises(edgeclip.errors.UsageError, match="batch_size must be at least 1, got 0"):
            model.encode_image(pixels, batch_size=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.pop("threads"), "missing required field `threads`"),
        (lambda plain: plain.update(threads=0), "Expected `int` >= 1 - at `$.threads`"),
        (lambda plain: plain.update(batch="8"), "Expected `int`, got `str` - at `$.batch`"),
        (lambda plain: plain.update(more=1), "unknown field `more`"),
        (lambda plain: plain.update(precision="fp8"), "Invalid enum value 'fp8' - at `$.precision`"),
        (lambda plain: plain["machine"].pop("cpu"), "missing required field `cpu` - at `$.machine`"),
        (lambda plain: plain.update(bundle="sha256:1"), "at `$.bundle`"),
        (lambda plain: plain.update(format_version=2), "has format 2, this edgeclip reads 1"),
    ],
)
def test_one_that_breaks_the_schema_is_an_error(change: Any, said: str) -> None:
    path = tuning.keep(tuning.device_file())
    plain = json.loads(path.read_bytes())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(DeviceFileError) as caught:
        edgeclip.load()
    assert str(path) in caught.value.message and said in caught.value.message
    assert "`edgeclip tune BUNDLE --forget` removes it; EDGECLIP_TUNED=off loads without it" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b" " * 70_000])
def test_one_that_is_damaged_is_an_error(data: bytes) -> None:
    path = tuning.keep(tuning.device_file())
    path.write_bytes(data)
    with pytest.raises(DeviceFileError, match="--forget"):
        edgeclip.load()
    assert chosen(backend="onnxruntime").info.batch == 32
    assert devicefile.forget(path) and chosen().info.batch == 32


def test_one_that_cannot_be_read_is_an_error(private_device_files: Path) -> None:
    tuning.place().mkdir(parents=True)
    with pytest.raises(DeviceFileError, match="cannot be read: Is a directory"):
        edgeclip.load()


@pytest.mark.parametrize("changes", [{"precision": "w8a8"}, {"target": "openvino"}])
def test_one_that_names_what_the_bundle_lacks_is_an_error(changes: dict[str, Any]) -> None:
    tuning.keep(tuning.device_file(**changes))
    with pytest.raises(
        DeviceFileError, match=r"names (onnx w8a8|openvino fp16) on onnxruntime, which the bundle does not"
    ):
        edgeclip.load()


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    path = tuning.keep(tuning.device_file())
    path.write_text("damaged")
    monkeypatch.setenv("EDGECLIP_TUNED", "off")
    assert devicefile.path_of(f"sha256:{'0' * 64}") is None
    assert chosen().info.batch == 32


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CONFIG_HOME", "edgeclip/tuned"),
        ("win32", "APPDATA", "edgeclip/tuned"),
        ("darwin", "HOME", "Library/Application Support/edgeclip/tuned"),
    ],
)
def test_they_lie_in_the_users_configuration(
    platform: str, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECLIP_TUNED")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert devicefile.folder() == tmp_path / expected


def test_without_a_home_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECLIP_TUNED")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert devicefile.folder() is None


def test_the_engines_version_is_that_which_it_reports() -> None:
    for name in ("onnxruntime", "openvino"):
        with edgeclip.load(backend=name) as model:
            assert devicefile.machine(name).engine_version.startswith(model.info.engine_version)


def test_what_is_measured_is_not_chosen_by_it() -> None:
    tuning.keep(tuning.device_file(backend="openvino"))
    with Engine().load(None) as measured, Engine().load(None, tuned=True) as used:
        assert (measured.info.backend, used.info.backend) == ("onnxruntime", "openvino")


def test_no_measurement_loads_by_it() -> None:
    """Each call of `edgeclip.load` in `benchmarks` says so."""
    calls = 0
    for path in sorted(Path(benchmarks.__file__).parent.glob("*.py")):
        text = path.read_text()
        names = {"edgeclip.load"} | ({"load"} if "from edgeclip.loading import load" in text else set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                calls += 1
                assert "tuned=False" in ast.unparse(node), f"{path.name}: {ast.unparse(node)}"
    assert calls >= 4


def test_it_costs_no_module_but_what_every_load_has() -> None:
    code = "import sys, edgeclip\nedgeclip.load()\nprint(*sorted(sys.modules))"
    run = [sys.executable, "-c", code]
    before = set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    tuning.keep(tuning.device_file())
    after = set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert after - before == set()
