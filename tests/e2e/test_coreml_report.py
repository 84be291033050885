"""The report on Core ML packages: what it finds of a real model, and what it calls broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.benchmarks.coreml import B32, COSINES, PRECISIONS, SHARES, STUDENT, Row, failures, to_markdown
from edgeclip.manifest import Precision
from edgeclip.paired import Cosines

pytest.importorskip("coremltools", reason="coremltools is not installed")


def row(precision: Precision, cosine: float = 1.0, *, golden: float = 1.0, share: float = 0.1) -> Row:
    return Row(
        model=B32,
        tower="image",
        precision=precision,
        size_bytes=4,
        share=share,
        cosines=Cosines(cosine, cosine, cosine),
        golden_min=golden,
        others=0.5,
        passed=True,
        deployment="iOS17",
    )


def test_sound_rows_have_no_failures() -> None:
    rows = [row(precision, COSINES.get(precision, 0.5), share=SHARES.get(precision, 1.0)) for precision in PRECISIONS]
    assert failures(rows) == []
    assert "Broken" not in to_markdown(rows, [], 2, 2)


@pytest.mark.parametrize("precision", COSINES)
def test_a_cosine_below_its_bound_is_a_failure(precision: Precision) -> None:
    low = COSINES[precision] - 1e-5
    for broken in (row(precision, low), row(precision, golden=low)):
        [failure] = failures([broken])
        assert failure == f"{B32} image {precision}: cosine min {low:.6f} < {COSINES[precision]}"
        assert f"**Broken:** {failure}." in to_markdown([broken], [], 2, 2)


@pytest.mark.parametrize("precision", SHARES)
def test_a_package_that_is_too_large_is_a_failure_of_the_model_whose_weights_dominate(precision: Precision) -> None:
    large = row(precision, share=SHARES[precision] + 0.001)
    [failure] = failures([large])
    assert failure == f"{B32} image {precision}: {large.share:.3f} of fp32's size > {SHARES[precision]}"
    assert failures([replace(large, model=STUDENT), replace(large, tower="text")]) == []


def test_a_trained_model_below_its_gate_is_a_failure() -> None:
    below = replace(row("w4a16"), passed=False)
    assert failures([replace(below, model=STUDENT)]) == [f"{STUDENT} image w4a16: below its gate"]
    assert failures([below]) == []


def report(data: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeclip.benchmarks.coreml", "--data", str(data), "--json", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_data_it_says_so(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.returncode == 2
    assert "no such data" in done.stderr + done.stdout


@pytest.mark.nightly
def test_the_student_s_packages_are_made_and_its_accuracy_kept(data_dir: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.md"
    done = report(data_dir, "--model", STUDENT, "--limit", "200", "--work", tmp_path / "work", "--report", page)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(r["tower"], r["precision"]) for r in found["rows"]] == [
        (t, p) for t in ("image", "text") for p in PRECISIONS
    ]
    assert page.read_text().count(f"| {STUDENT} |") == 12
    lost = {one["precision"]: one["found"]["drop"]["drop_pt"] for one in found["accuracy"]}
    assert lost["fp32"] == lost["fp16"] == 0
    assert max(lost["w8a16"], lost["w8a8"]) < 2


@pytest.mark.nightly
def test_models_of_full_size(data_dir: Path, bpe_path: Path, tmp_path: Path) -> None:
    models = ("--model", "RN50", "--model", B32, "--model", "edge-t")
    done = report(data_dir, "--tokenizer", bpe_path, *models, "--pairs", "4", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 36
