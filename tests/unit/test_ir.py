"""Quantizing to OpenVINO IR: what is refused before NNCF starts, and what becomes of a child process that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeclip.errors import ExportError, NonFiniteError, TargetUnavailableError, UsageError
from edgeclip.quantize import ir_process
from edgeclip.quantize.ir import is_transformer, quantize_ir
from edgeclip.quantize.ir_weights import quantize_ir_weights
from edgeclip.quantize.made import Made
from tests.towers import SIDE, Kind, export, samples

Start = Callable[[str], None]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused must be refused before a process is started."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr("subprocess.run", start)


@pytest.fixture
def at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Python code that every child process runs before anything else."""

    def install(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


def quantize(model: bytes | None = None) -> Made:
    return quantize_ir(model or export("repvgg"), "image", samples("repvgg", 2))


def with_weight(value: float) -> bytes:
    model = onnx.load_model_from_string(export("repvgg"))
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.usefixtures("no_child")
def test_weights_that_are_not_finite_are_refused_before_nncf_starts(value: float, bits: int) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity in "):
        quantize(with_weight(value))
    with pytest.raises(NonFiniteError, match="NaN or infinity in "):
        quantize_ir_weights(with_weight(value), "image", bits=bits)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_child")
def test_a_kept_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no layer is named no.such.layer"):
        quantize_ir(export("repvgg"), "image", samples("repvgg", 2), keep={"no.such.layer"})
    with pytest.raises(UsageError, match="no layer is named no.such.layer"):
        quantize_ir_weights(export("repvgg"), "image", bits=8, keep={"no.such.layer"})


@pytest.mark.usefixtures("no_child")
def test_no_samples_are_refused() -> None:
    empty = np.empty((0, SIDE, SIDE, 3), np.uint8)
    with pytest.raises(UsageError, match="no calibration samples"):
        quantize_ir(export("repvgg"), "image", empty)
    with pytest.raises(UsageError, match="no calibration samples"):
        quantize_ir_weights(export("repvgg"), "image", bits=4, samples=empty)


@pytest.mark.usefixtures("no_child")
def test_samples_of_the_other_tower_are_refused() -> None:
    with pytest.raises(UsageError, match=r"samples are int32 \[2, 16\], the image tower takes uint8 \[N, S, S, 3\]"):
        quantize_ir(export("repvgg"), "image", samples("text", 2))


@pytest.mark.usefixtures("no_child")
def test_bytes_that_are_no_onnx_model_are_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        quantize(b"\x08")


def test_a_child_that_is_killed_is_an_error(at_start: Start) -> None:
    at_start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ExportError, match="^nncf: quantizing was killed by signal 9"):
        quantize()


def test_a_child_that_hangs_is_an_error(at_start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ir_process, "TIME_LIMIT_S", 1)
    at_start("import time\ntime.sleep(600)")
    with pytest.raises(ExportError, match="^nncf: quantizing took longer than 1 s"):
        quantize()


@pytest.mark.parametrize("library", ["nncf", "openvino"])
def test_a_missing_library_is_named_with_what_installs_it(library: str, at_start: Start) -> None:
    at_start(f"""
import sys

class Absent:
    def find_spec(self, name, *rest):
        if name == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
""")
    with pytest.raises(TargetUnavailableError, match=f"{library} is not installed") as caught:
        quantize()
    assert caught.value.hint == "pip install 'edgeclip[quantize]'"


def test_a_model_that_openvino_cannot_read_is_an_error_with_its_reason() -> None:
    model = onnx.load_model_from_string(export("repvgg"))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="^nncf: quantizing failed: .*NoSuchOperator"):
        quantize(model.SerializeToString())


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_start: Start
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    at_start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ExportError):
        quantize()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind, expected", [("vit", True), ("text", True), ("repvgg", False)])
def test_transformers_are_known_by_their_graph(kind: Kind, expected: bool) -> None:
    assert is_transformer(onnx.load_model_from_string(export(kind)).graph) is expected
