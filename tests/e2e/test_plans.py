"""The report on engines for TensorRT: what it finds of a real model, and what it calls broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.benchmarks.plans import BOUNDS, Row, failures, to_markdown
from edgeclip.manifest import Precision
from edgeclip.parity import Agreement

NEEDS = "tensorrt_rtx is not installed: pip install 'edgeclip[tensorrt-ci]'"
SIZES: dict[Precision, int] = {"fp32": 400, "fp16": 200, "w8a8": 100}


def row(precision: Precision, cosine: float = 1.0, model: str = "ViT-B-32") -> Row:
    return Row(
        model=model,
        tower="image",
        precision=precision,
        onnx_bytes=4,
        plan_bytes=SIZES[precision],
        build_s=1.0,
        agreement=Agreement(n=2, cosine_mean=cosine, cosine_min=cosine, max_abs=0.0, top1_agreement=1.0),
        golden_cosine_min=1.0,
        others=0.5,
    )


def test_sound_rows_have_no_failures() -> None:
    rows = [row("fp32", 0.9999), row("fp16", 0.999), row("w8a8", 0.99)]
    assert failures(rows) == []
    assert "Broken" not in to_markdown(rows, 2)


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_cosine_below_its_bound_is_a_failure(precision: Precision) -> None:
    low = BOUNDS[precision][1] - 1e-5
    [failure] = failures([row(precision, low)])
    assert failure.startswith(f"ViT-B-32 image {precision}: cosine m") and failure.endswith(f"< {BOUNDS[precision][1]}")
    assert f"**Broken:** {failure}." in to_markdown([row(precision, low)], 2)


def test_a_larger_engine_for_fewer_bits_is_a_failure_of_the_model_whose_weights_dominate() -> None:
    rows = [row("fp32"), row("fp16"), replace(row("w8a8"), plan_bytes=201)]
    [failure] = failures(rows)
    assert failure == "ViT-B-32 image: engines of fp32, fp16, w8a8 have [400, 200, 201] bytes"
    assert failures([replace(one, model="built-in") for one in rows]) == []


def plans(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeclip.benchmarks.plans", "--data", str(data), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_built_in_model_s_engines_are_built_and_its_embeddings_kept(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NEEDS)
    done = plans(data_dir, "--model", "built-in", "--limit", "16", "--report", str(tmp_path / "r.md"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(r["tower"], r["precision"]) for r in rows] == [(t, p) for t in ("image", "text") for p in BOUNDS]
    assert all(r["plan_bytes"] > r["onnx_bytes"] // 2 for r in rows)
    assert (tmp_path / "r.md").read_text().count("| built-in |") == 6


@pytest.mark.nightly
def test_models_of_full_size(data_dir: Path, bpe_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NEEDS)
    done = plans(data_dir, "--tokenizer", str(bpe_path), "--model", "RN50", "--model", "ViT-B-32")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 12


def test_without_data_it_says_so(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NEEDS)
    done = plans(tmp_path)
    assert done.returncode == 2
    assert "no such data" in done.stderr + done.stdout
