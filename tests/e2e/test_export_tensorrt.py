"""Export for TensorRT: what is published, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import ExportError
from edgeclip.export.pipeline import export, plan
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import Axis, Profile
from edgeclip.outcome import raise_if_failed
from edgeclip.quantize.calibration import collect
from edgeclip.quantize.lint import lint
from edgeclip.quantize.quantizer import Settings
from edgeclip.tokenizer import Tokenizer
from tests import pictures, tiny
from tests.cli import edgeclip


def test_what_is_published_says_which_engine_to_build(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.edgeclip"
    asked = ["--target", "tensorrt", "--precision", "fp32,fp16", "--max-batch", "4"]
    done = edgeclip("export", tiny_checkpoint, *asked, "-o", path, "--random-weights")
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(path)
    bundle.verify_files()
    batch, context = Axis(min=1, opt=4, max=4), Axis(min=1, opt=24, max=24)
    found = {(a.precision, a.tower): a for a in bundle.manifest.artifacts}
    assert set(found) == {(precision, tower) for precision in ("fp32", "fp16") for tower in ("image", "text")}
    for (precision, tower), artifact in found.items():
        assert artifact.files == (f"tensorrt-{precision}/{tower}.onnx",)
        assert artifact.profile == Profile(batch=batch, context=context if tower == "text" else None)
        assert artifact.parity.backend.startswith("onnxruntime ") and artifact.parity.passed
        assert lint(bundle.read(artifact.file)) == []
    assert re.search(r"tensorrt fp16 text +1 to 4, best at 4 +1 to 24, best at 24", edgeclip("inspect", path).stdout)


def test_integers_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, source = tmp_path / "t.edgeclip", tiny.source(tiny_checkpoint)
    tokenizer = Tokenizer(source.tokenizer, source.tokenizer_spec)
    calibration = collect(pictures.table(tmp_path / "captions.csv", 24), source.preprocess, tokenizer, count=24)
    jobs = plan(["tensorrt"], ["w8a8"], None, 64)
    export(source, path, jobs, settings=Settings(calibration), allow_below_gate=True)
    for artifact in Bundle.open(path).manifest.artifacts:
        assert artifact.profile is not None and artifact.profile.batch == Axis(min=1, opt=8, max=64)
        assert artifact.quantization is not None and artifact.quantization.calibration is not None
        assert artifact.opset == 19  # the first whose conversions take half precision
        assert lint(Bundle.open(path).read(artifact.file)) == []


def test_the_default_profile(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.edgeclip"
    raise_if_failed(export(tiny.source(tiny_checkpoint), path, plan(["tensorrt", "onnx"], ["fp16"], "image")))
    profiles = {a.target: a.profile for a in Bundle.open(path).manifest.artifacts}
    assert profiles == {"tensorrt": Profile(batch=Axis(min=1, opt=8, max=32)), "onnx": None}


def test_what_tensorrt_would_refuse_is_not_published(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, source = tmp_path / "t.edgeclip", tiny.source(tiny_checkpoint)
    source.clip.text.mask.masked_fill_(source.clip.text.mask < 0, -np.inf)
    [outcome] = export(source, path, plan(["tensorrt"], ["fp32"], "text"))
    assert outcome.status == "failed"
    assert not path.exists()
    with pytest.raises(ExportError, match=r"text tower: TensorRT would refuse it: node \S+: \S*mask holds infinity"):
        raise_if_failed([outcome])


def held(path: Path) -> set[tuple[str, str, str]]:
    bundle = Bundle.open(path)
    bundle.verify_files()
    return {(a.target, a.precision, a.tower) for a in bundle.manifest.artifacts}


BOTH = [("onnx", "fp16", "image"), ("onnx", "fp16", "text")]
"""What the built-in model holds."""


def test_a_bundle_is_a_source_as_a_checkpoint_is(tmp_path: Path) -> None:
    path, golden = tmp_path / "b.edgeclip", Bundle.open(BUILT_IN).read("golden.safetensors")
    done = edgeclip("export", BUILT_IN, "--target", "tensorrt", "--precision", "fp32,fp16", "-o", path)
    assert done.returncode == 0, done.stderr
    made = [("tensorrt", precision, tower) for precision in ("fp32", "fp16") for tower in ("image", "text")]
    assert held(path) == {*BOTH, *made}
    bundle = Bundle.open(path)
    assert bundle.read("golden.safetensors") == golden
    for artifact in bundle.artifacts(target="tensorrt"):
        assert artifact.parity.passed and artifact.parity.cosine_min > 0.99999
        assert lint(bundle.read(artifact.file)) == []
        assert artifact.profile is not None and artifact.opset == 18
    again = edgeclip("export", path, "--target", "tensorrt", "--precision", "fp32", "-o", path)
    assert again.returncode == 2
    assert "has tensorrt fp32 image already" in again.stderr
    before = path.read_bytes()
    elsewhere = edgeclip("export", BUILT_IN, "--target", "tensorrt", "--precision", "fp32", "-o", path)
    assert (elsewhere.returncode, path.read_bytes()) == (2, before)
    assert "exists already" in elsewhere.stderr


def test_openvino_from_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "b.edgeclip"
    asked = ["--target", "openvino", "--precision", "fp16,w8a16", "--tower", "image", "-o", path]
    done = edgeclip("export", BUILT_IN, *asked)
    assert done.returncode == 0, done.stderr
    assert held(path) == {*BOTH, ("openvino", "fp16", "image"), ("openvino", "w8a16", "image")}


def test_half_precision_is_not_made_of_single_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.edgeclip"
    raise_if_failed(export(tiny.source(tiny_checkpoint), path, plan(["onnx"], ["fp32"], "image")))
    before = path.read_bytes()
    done = edgeclip("export", path, "--target", "tensorrt", "--precision", "fp32,fp16", "-o", path)
    assert done.returncode == 2
    assert "has no fp16 ONNX of the image tower to start from" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "option", [["--tokenizer", "x"], ["--opset", "17"], ["--random-weights"], ["--name", "x"], ["--allow-pickle"]]
)
def test_a_bundle_cannot_be_read_in_another_way(option: list[str], tmp_path: Path) -> None:
    done = edgeclip("export", BUILT_IN, "--target", "tensorrt", "-o", tmp_path / "b.edgeclip", *option)
    assert done.returncode == 2
    assert f"{option[0]}: only for checkpoints" in done.stderr


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_a_largest_batch_is_refused_where_nothing_has_one(command: str, tiny_bundle: Path, tmp_path: Path) -> None:
    done = edgeclip(command, tiny_bundle, "--target", "onnx", "--precision", "w8a16", "--max-batch", "4", "-o", tmp_path / "x.edgeclip")  # fmt: skip
    assert done.returncode == 2
    assert "--max-batch is for target tensorrt" in done.stderr


@pytest.mark.parametrize("rows", ["0", "-1", "1025", "many"])
def test_a_largest_batch_is_a_sensible_number(rows: str, tiny_checkpoint: Path) -> None:
    done = edgeclip("export", tiny_checkpoint, "--target", "tensorrt", "--max-batch", rows)
    assert done.returncode == 2
    assert "--max-batch" in done.stderr
