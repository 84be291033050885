"""Every operation of the Core ML reference, as a small program, against PyTorch: in fp32 and in fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeclip.backends import mil_constexpr, mil_elementwise, mil_linear, mil_reduction, mil_shapes
from edgeclip.backends.base import Array
from edgeclip.backends.mil_ops import KERNELS
from tests import mil
from tests.mil import FLOATS
from tests.mil_cases import constexpr, elementwise, linear, reduction, shapes
from tests.mil_cases.case import Case, exact

MODULES: list[tuple[Any, Any]] = [
    (elementwise, mil_elementwise),
    (linear, mil_linear),
    (reduction, mil_reduction),
    (shapes, mil_shapes),
    (constexpr, mil_constexpr),
]
CASES: list[Case] = [case for cases, _ in MODULES for case in cases.CASES]


@pytest.mark.parametrize("float_type", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation_agrees_with_pytorch(case: Case, float_type: str, tmp_path: Path) -> None:
    dtype = FLOATS[float_type]
    inputs = [x.astype(dtype) if x.dtype.kind == "f" else x for x in case.inputs]
    found = mil.run(case.build(dtype), inputs, case.opset, tmp_path)
    expected = case.reference(*(exact(x) if x.dtype.kind == "f" else torch.from_numpy(x).long() for x in inputs))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        compare(got, want, dtype, case.ulps)


def compare(got: Array, want: Tensor, dtype: Any, ulps: float) -> None:
    """Integers are equal; floats are of their type, and the nearest number of it but for errors of float32."""
    assert got.shape == tuple(want.shape)
    if not want.dtype.is_floating_point:
        assert got.dtype.kind in "iub"
        np.testing.assert_array_equal(got, want.numpy())
        return
    kept = {torch.float16: np.float16, torch.float32: np.float32}.get(want.dtype, dtype)
    precise = want.double().numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, got.astype(kept).astype(np.float32))
    error = np.finfo(np.float32).eps * ulps * np.abs(precise).max()
    nearest = np.spacing(np.abs(precise).astype(kept)).astype(np.float64) / 2
    assert (np.abs(got - precise) <= nearest + error).all(), np.abs(got - precise).max()


@pytest.mark.parametrize(("cases", "kernels"), MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_every_operation_has_a_case(cases: Any, kernels: Any) -> None:
    assert {case.op for case in cases.CASES} == set(kernels.KERNELS)


def test_every_module_of_operations_is_tested() -> None:
    assert {name for _, kernels in MODULES for name in kernels.KERNELS} == set(KERNELS)
