"""`edgeclip distill` with [quantize] as it is used: killed, resumed, exported."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edgeclip.bundle import Bundle
from edgeclip.train.checkpoints import read_checkpoint
from tests import qat
from tests.cli import edgeclip, patched
from tests.training import at_step

CHANGES = {"loop__steps": 8, "loop__ema": 0.9, "quantize__freeze_after": 0.7}


def checkpoint(folder: Path) -> Path:
    return folder / "runs" / "toy" / "checkpoint"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    done = edgeclip("distill", qat.recipe_file(folder, "w8a8", **CHANGES))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.nightly
def test_a_killed_run_goes_on_with_its_scales_as_if_nothing_had_happened(tmp_path: Path, straight: Path) -> None:
    recipe = qat.recipe_file(tmp_path, "w8a8", **CHANGES)
    killed = patched(at_step(5, "os.kill(os.getpid(), signal.SIGKILL)"), "distill", recipe)
    assert killed.returncode == -signal.SIGKILL and not checkpoint(tmp_path).exists()
    done = edgeclip("distill", recipe, "--resume")
    assert done.returncode == 0, done.stderr
    for file in ("model.safetensors", "scales.safetensors"):
        expected = load_file(checkpoint(straight) / file)
        for name, value in load_file(checkpoint(tmp_path) / file).items():
            assert float((value - expected[name]).abs().max()) <= 1e-6, name


@pytest.mark.nightly
def test_it_exports_in_single_precision(straight: Path, tmp_path: Path) -> None:
    done = edgeclip("export", checkpoint(straight), "--target", "onnx", "-o", tmp_path / "toy.edgeclip")
    assert done.returncode == 0, done.stderr
    assert len(Bundle.open(tmp_path / "toy.edgeclip").manifest.artifacts) == 2


def test_its_scales_are_exported_without_any_data(straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.edgeclip"
    options = ("--target", "onnx,openvino", "--precision", "w8a8", "--allow-below-gate")  # a toy is at its edge
    done = edgeclip("export", checkpoint(straight), *options, "-o", path)
    assert done.returncode == 0, done.stderr
    artifacts = Bundle.open(path).manifest.artifacts
    assert len(artifacts) == 4 and all(artifact.parity.cosine_mean > 0.97 for artifact in artifacts)
    made = [artifact.quantization for artifact in artifacts if artifact.quantization]
    assert len(made) == 4 and all(one.learned and one.calibration is None for one in made)
    rounded = [layer.name for one in made for layer in one.layers if layer.precision == "w8a8"]
    assert len(rounded) == 2 * qat.LAYERS
    shown = edgeclip("inspect", path)
    assert shown.returncode == 0 and shown.stdout.count("learned in training") == 4


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("openvino", "w4a16", "the checkpoint has learned scales for w8a8, not for w4a16"),
        pytest.param(
            *("onnx", "w8a16", "the checkpoint has learned scales for w8a8, not for w8a16"), marks=pytest.mark.nightly
        ),
        ("tensorrt", "w8a8", "the checkpoint's activations have zero points, target tensorrt has none"),
    ],
)
def test_scales_of_another_kind_are_not_exported(
    straight: Path, tmp_path: Path, target: str, precision: str, message: str
) -> None:
    path = tmp_path / "toy.edgeclip"
    done = edgeclip("export", checkpoint(straight), "--target", target, "--precision", precision, "-o", path)
    assert done.returncode == 2 and message in done.stderr and not path.exists()


def test_a_checkpoint_without_scales_still_needs_data(straight: Path, tmp_path: Path) -> None:
    before = straight / "before"
    done = edgeclip("export", before, "--target", "onnx", "--precision", "w8a8", "-o", tmp_path / "toy.edgeclip")
    assert done.returncode == 2 and "w8a8 needs calibration data" in done.stderr


def test_the_student_comes_closer_to_what_it_was(straight: Path) -> None:
    lines = [json.loads(line) for line in (straight / "runs/toy/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["cosine"] < lines[0]["cosine"]
    scales = read_checkpoint(checkpoint(straight)).scales
    assert scales is not None and len(scales.layers) == qat.LAYERS


def test_distill_refuses_a_model_to_quantize_that_is_not_named(tmp_path: Path) -> None:
    done = edgeclip("distill", qat.recipe_file(tmp_path, model__init_from=""))
    assert done.returncode == 2 and "[quantize] fine-tunes a trained model" in done.stderr
