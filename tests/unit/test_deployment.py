"""Which system a Core ML package is made for."""

from __future__ import annotations

import pytest

from edgeclip.errors import UsageError
from edgeclip.export.pipeline import plan
from edgeclip.quantize.deployment import deployment


def test_the_oldest_system_that_runs_a_precision_is_the_default() -> None:
    assert deployment("fp16") == "iOS17"
    assert deployment("w6a16") == "iOS17"
    assert deployment("w4a16") == "iOS18"


def test_what_is_asked_for_is_taken() -> None:
    assert deployment("fp16", "macOS15") == "macOS15"
    assert deployment("w4a16", "macOS15") == "macOS15"


def test_an_unknown_system_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"unknown Core ML target 'iOS9'.*iOS17, macOS14, iOS18, macOS15"):
        deployment("fp16", "iOS9")


def test_a_system_that_cannot_run_the_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"coreml w4a16 needs iOS18, not macOS14.*--coreml-target iOS18"):
        deployment("w4a16", "macOS14")


def test_jobs_of_other_targets_have_no_system() -> None:
    jobs = plan(["onnx", "coreml"], ["fp16"], "image", coreml_target="iOS18")
    assert [(job.target, job.deployment) for job in jobs] == [("onnx", None), ("coreml", "iOS18")]
