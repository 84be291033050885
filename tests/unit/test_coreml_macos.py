"""The macOS backend, as far as it can be tested without a Mac: what it asks of coremltools, and what it makes of it."""

from __future__ import annotations

import inspect

import pytest

from edgeclip.errors import TargetUnavailableError
from tests import bundles

pytest.importorskip("coremltools", reason="coremltools is not installed")

from edgeclip.backends import coreml
from edgeclip.backends.coreml_library import ct

ARTIFACT = bundles.artifacts()[0]


def test_compute_units_are_those_of_coremltools() -> None:
    assert {ct.ComputeUnit[name] for name in coreml._UNITS.values()} == set(ct.ComputeUnit)


def test_coremltools_has_what_the_backend_calls() -> None:
    assert list(inspect.signature(ct.models.CompiledMLModel).parameters)[:2] == ["path", "compute_units"]
    assert list(inspect.signature(ct.models.utils.compile_model).parameters) == ["model", "destination_path"]
    plan = ct.models.compute_plan.MLComputePlan
    assert list(inspect.signature(plan.load_from_path).parameters) == ["path", "compute_units"]
    assert callable(plan.get_compute_device_usage_for_mlprogram_operation)
    usage = ct.models.compute_plan.MLComputePlanDeviceUsage
    assert "preferred_compute_device" in usage.__dataclass_fields__
    devices = ct.models.compute_device
    assert all(issubclass(getattr(devices, name), devices.MLComputeDevice) for name in coreml._KINDS)


@pytest.mark.parametrize(
    ("device", "placement"),
    [
        ("cpu+ane", {"ane": 3, "cpu": 90}),
        ("cpu+ane", {}),
        ("cpu+gpu", {"gpu": 1}),
        ("cpu", {"cpu": 5}),
        ("all", {"cpu": 5}),
    ],
)
def test_unit_that_was_asked_for_and_is_used_passes(device: str, placement: dict[str, int]) -> None:
    coreml._require_used(ARTIFACT, device, placement)


@pytest.mark.parametrize(("device", "unit"), [("cpu+ane", "ane"), ("cpu+gpu", "gpu")])
def test_unit_that_was_asked_for_and_gets_nothing_is_an_error(device: str, unit: str) -> None:
    with pytest.raises(TargetUnavailableError, match=rf"Core ML runs none of it on {unit}, but \{{'cpu': 5\}}"):
        coreml._require_used(ARTIFACT, device, {"cpu": 5})
