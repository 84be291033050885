"""Export for TensorRT: what is published, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import ExportError
from edgeclip.export.pipeline import export, plan
from edgeclip.manifest import Axis, Profile
from edgeclip.outcome import raise_if_failed
from edgeclip.quantize.lint import lint
from tests import pictures, tiny
from tests.cli import edgeclip


def test_every_precision_is_published_with_its_profile(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, captions = tmp_path / "t.edgeclip", pictures.table(tmp_path / "captions.csv", 24)
    asked = ["--target", "tensorrt", "--precision", "fp32,fp16,int8", "--max-batch", "4", "--calib", captions]
    done = edgeclip("export", tiny_checkpoint, *asked, "-o", path, "--random-weights", "--allow-below-gate")
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(path)
    bundle.verify_files()
    batch, context = Axis(min=1, opt=4, max=4), Axis(min=1, opt=24, max=24)
    found = {(a.precision, a.tower): a for a in bundle.manifest.artifacts}
    assert set(found) == {(p, tower) for p in ("fp32", "fp16", "w8a8") for tower in ("image", "text")}
    for (precision, tower), artifact in found.items():
        assert artifact.files == (f"tensorrt-{precision}/{tower}.onnx",)
        assert artifact.profile == Profile(batch=batch, context=context if tower == "text" else None)
        assert artifact.parity.backend.startswith("onnxruntime ")
        assert artifact.parity.passed or precision == "w8a8"
        assert lint(bundle.read(artifact.file)) == []
    shown = edgeclip("inspect", path)
    assert "tensorrt fp16 text   1 to 4, best at 4  1 to 24, best at 24" in shown.stdout


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
