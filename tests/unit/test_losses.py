"""What is known of an artifact's loss before it is timed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeclip.benchmarks.losses import recorded, references_of
from edgeclip.benchmarks.rows import Row
from edgeclip.manifest import Artifact, Budget, Precision, Quantization, Step, Target
from tests import bundles


def row(*artifacts: Artifact, missing: str = "") -> Row:
    first = artifacts[0]
    return Row(
        f"{first.target} {first.precision}", "b", Path("b"), first.target, first.precision, "", artifacts, 1, missing
    )


def quantized(budget: Budget | None) -> Artifact:
    return msgspec.structs.replace(
        bundles.artifact("image", "onnx", "w8a8"), quantization=Quantization(layers=(), budget=budget)
    )


def budget(high: float = 0.6, kept: int = 2, steps: tuple[Step, ...] = ()) -> Budget:
    return Budget(
        data="d", metric="top1", n=900, max_drop_pt=0.5, reference=0.5, drop_pt=0.1, low_pt=-0.4, high_pt=high,
        kept=kept, steps=steps,
    )  # fmt: skip


def step(kept: int, high: float) -> Step:
    return Step(kept=kept, drop_pt=0.1, high_pt=high, fits=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_floating_point_is_held_by_golden_vectors(precision: Precision) -> None:
    found = recorded(row(bundles.artifact("image", "onnx", precision)))
    assert found is not None and (found.basis, found.bound_pt, found.drop_pt) == ("golden vectors", 0.0, None)


def test_the_one_sided_bound_of_the_candidate_that_was_taken_counts() -> None:
    found = recorded(row(quantized(budget(steps=(step(0, 2.0), step(2, 0.5), step(1, 0.9))))))
    assert found is not None and found.bound_pt == 0.5 and found.drop_pt == 0.1
    assert found.basis == "recorded: top1 of d, n 900"


def test_without_a_search_the_two_sided_bound_counts() -> None:
    found = recorded(row(quantized(budget())))
    assert found is not None and found.bound_pt == 0.6


def test_the_worse_of_two_towers_counts() -> None:
    found = recorded(row(quantized(budget(0.3)), quantized(budget(0.7))))
    assert found is not None and found.bound_pt == 0.7


def test_what_nobody_measured_is_not_known() -> None:
    assert recorded(row(quantized(None))) is None
    assert recorded(row(bundles.artifact("image", "onnx", "w8a16"))) is None
    assert recorded(row(quantized(budget()), quantized(None))) is None


def test_the_reference_is_the_most_precise_that_runs_onnx_first() -> None:
    def one(target: Target, precision: Precision, missing: str = "") -> Row:
        return row(bundles.artifact("image", target, precision), missing=missing)

    rows = [
        one("openvino", "fp16"),
        one("openvino", "fp32"),
        one("onnx", "w8a8"),
        one("onnx", "fp32"),
        one("onnx", "fp16"),
    ]
    labels = [found.label for found in references_of([*rows, one("tensorrt", "fp32", "no GPU")])]
    assert labels == ["onnx fp32", "openvino fp32", "onnx fp16", "openvino fp16"]
