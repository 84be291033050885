"""What `edgeclip eval` makes of its options, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.benchmarks.accuracy_rows import AccuracyRow, Evaluation
from edgeclip.benchmarks.embedding_child import Subject
from edgeclip.cli import main
from edgeclip.cli.eval import _called, asked_engines, specs
from edgeclip.cli.options import Engine
from edgeclip.errors import UsageError
from edgeclip.loading import BUILT_IN


def asked(backends: tuple[str, ...] = (), precisions: tuple[str, ...] = ()) -> list[tuple[str, str | None]]:
    return [(one.backend, one.precision) for one in asked_engines(Engine(compute="bf16"), backends, precisions)]


def evaluated(digest: str) -> AccuracyRow:
    """A row of an artifact that is called as in every bundle of the model."""
    subject = Subject(
        name="edge-s",
        bundle=digest,
        target="onnx",
        precision="fp16",
        backend="onnxruntime",
        engine_version="1",
        device="cpu",
        compute="f32",
    )
    return AccuracyRow(subject=subject, suite="quick", data="d", metric="top1", value=0.5, low=0.4, high=0.6, n=9)


def test_every_backend_runs_every_precision() -> None:
    assert asked() == [("auto", None)]
    assert asked(("openvino,onnxruntime",), ("fp32,int8", "w8a8")) == [
        (name, precision) for name in ("openvino", "onnxruntime") for precision in ("fp32", "w8a8")
    ]
    with pytest.raises(UsageError, match="unknown backend 'onnx'"):
        asked(("onnx",))


def test_all_backends_are_those_that_run_here() -> None:
    found, missing = specs("quick", [BUILT_IN, BUILT_IN], asked_engines(Engine(), ("all", "onnxruntime"), ()))
    assert {(one.backend, one.precision) for one in found} >= {("onnxruntime", "fp16"), ("openvino", "fp16")}
    assert len(found) == len(set(found)) and not missing


def test_a_bundle_that_cannot_be_opened_is_missing_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "x.edgeclip").write_bytes(b"no bundle")
    found, (one,) = specs("quick", [tmp_path / "x.edgeclip", BUILT_IN], asked_engines(Engine(), ("all",), ()))
    assert {spec.bundle for spec in found} == {str(BUILT_IN)}
    assert one.artifact == "x.edgeclip all" and one.fault.type == "BundleFormatError" and one.fault.exit_code == 3


def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--data", str(tmp_path), "-o", str(tmp_path / "absent" / "a.json")]) == 2
    assert "the directory" in capfd.readouterr().err


def test_an_output_of_another_kind_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--data", str(tmp_path), "-o", str(BUILT_IN)]) == 2
    assert "is to be a .json file" in capfd.readouterr().err


@pytest.mark.parametrize("place", [".", "/"])
def test_an_output_that_is_a_directory_is_refused(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--data", str(tmp_path), "-o", place]) == 2
    assert "is a directory" in capfd.readouterr().err


def test_artifacts_of_two_bundles_that_are_called_alike_are_told_apart() -> None:
    rows = [evaluated(f"sha256:{letter * 64}") for letter in "ab"]
    found = Evaluation(suite="quick", rows=tuple(rows))
    assert [_called(one, found) for one in rows] == [f"edge-s onnxruntime fp16 of {letter * 8}" for letter in "ab"]
    assert _called(rows[0], Evaluation(suite="quick", rows=(rows[0],))) == "edge-s onnxruntime fp16"
