"""The GPU's report without a GPU: what it looks like, and what it says where it cannot be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip import backends
from edgeclip.benchmarks.gpu import EAGER, PARITY_BATCHES, Built, Speed, to_markdown
from edgeclip.benchmarks.timing import Estimate


def test_without_a_gpu_one_line_says_so(tiny_bundle: Path) -> None:
    if backends.installed("tensorrt") and backends.ready("tensorrt"):
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "edgeclip.benchmarks.gpu", str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert "tensorrt" in done.stderr or "GPU" in done.stderr


def test_the_page_has_a_row_for_each_engine_and_contender() -> None:
    cosines = tuple(0.999 for _ in PARITY_BATCHES)
    engines = [
        Built("b32", "image", "fp16", 176_000_000, 180_000_000, 41.5, False, 0.31, cosines, 2e-4),
        Built("b32", "text", "fp16", 126_000_000, failure="text.onnx: TensorRT cannot build it|really"),
    ]
    speeds = [
        Speed("b32", "image", 8, EAGER, Estimate(3.0, 2.9, 3.1), None),
        Speed("b32", "image", 8, "edgeclip fp16", Estimate(1.5, 1.4, 1.6), Estimate(2.0, 1.9, 2.1)),
    ]
    document = {"gpu": "Some GPU", "note": "A remark.", "versions": {"TensorRT": "10.3", "torch": None}}
    page = to_markdown(document, engines, speeds)
    assert "Some GPU. TensorRT 10.3." in page and "A remark." in page and "torch" not in page.splitlines()[2]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| b32")]
    built, failed, eager, ours = rows
    assert built[4:7] == ["180.0", "41.5", "0.31"] and built[7:13] == ["0.999000"] * 6
    assert len(failed) == len(built) and failed[-1] == "text.onnx: TensorRT cannot build it\\|really |"
    assert eager[4:6] == ["3.000", "2.900 – 3.100"]
    assert ours[4:7] == ["1.500", "1.400 – 1.600", "2.00"]
