"""Rounding that gradients pass: values and gradients that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgeclip.quantize.rounding import ActivationQuantizer, WeightQuantizer, damp_gradient, fake_quantize, lsq_factor

X = torch.tensor([-9.0, -0.6, 0.4, 1.2, 1.0, 9.0])
"""In steps of ½: below −7 steps, −1.2, 0.8, 2.4, 2 exactly, above 7 steps."""
HALF = torch.tensor(0.5)


def test_values_are_the_nearest_multiples_within_bounds() -> None:
    assert fake_quantize(X, HALF, -7, 7).tolist() == [-3.5, -0.5, 0.5, 1.0, 1.0, 3.5]


def test_halves_round_to_even_as_in_onnx() -> None:
    assert fake_quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor(1.0), -7, 7).tolist() == [0, 2, 2, 0]


def test_gradients_pass_straight_where_nothing_is_clamped() -> None:
    x = X.clone().requires_grad_()
    fake_quantize(x, HALF, -7, 7).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0.4, 1 - 0.8), (1.2, 2 - 2.4), (-0.6, -1 + 1.2), (1.0, 0.0), (9.0, 7.0), (-9.0, -7.0)],
)
def test_a_scale_s_gradient_is_that_of_lsq(x: float, expected: float) -> None:
    """round(x / s) − x / s within the bounds, the bound beyond them."""
    scale = HALF.clone().requires_grad_()
    fake_quantize(torch.tensor([x]), scale, -7, 7).sum().backward()
    assert scale.grad is not None and scale.grad.item() == pytest.approx(expected, abs=1e-6)


def test_a_logarithm_s_gradient_is_the_scale_times_its_own_and_damped() -> None:
    """Of the weights 0.4 and 9 at s = ½: s · (0.2 + 7) / √(2 values · 7 levels)."""
    quantizer = WeightQuantizer(torch.tensor([[1.0, 3.5]]), bits=4)
    with torch.no_grad():
        quantizer.log_scale.fill_(math.log(0.5))
    quantizer(torch.tensor([[0.4, 9.0]])).sum().backward()
    assert quantizer.log_scale.grad is not None
    assert quantizer.log_scale.grad.item() == pytest.approx(0.5 * 7.2 / math.sqrt(14), rel=1e-5)


def test_damping_changes_the_gradient_alone() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = damp_gradient(x, 0.25)
    y.backward()  # type: ignore[no-untyped-call]
    assert y.item() == 2.0 and x.grad is not None and x.grad.item() == 0.25
    assert lsq_factor(values=16, high=4) == 0.125


def test_weights_on_a_grid_keep_their_values() -> None:
    weight = torch.tensor([[-7.0, 3.0, 1.0], [0.7, -0.2, 0.1]])
    quantizer = WeightQuantizer(weight, bits=4)
    torch.testing.assert_close(quantizer.scale.flatten(), torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(quantizer(weight), weight)


def test_an_outlier_is_clamped_where_that_errs_less() -> None:
    """A thousand small weights and a large one: the scale of the largest magnitude would round all others to 0."""
    weight = torch.cat([torch.full((1000,), 0.25), torch.tensor([4.0])])[None]
    best = WeightQuantizer(weight, bits=4)
    error = (best(weight) - weight).square().sum()
    assert best.scale.item() < 4 / 7
    assert error < (fake_quantize(weight, torch.tensor(4 / 7), -7, 7) - weight).square().sum()


def test_a_weight_of_nothing_but_zeros_stays() -> None:
    weight = torch.zeros(2, 3)
    assert bool((WeightQuantizer(weight, bits=4)(weight) == 0).all())


@pytest.mark.parametrize(("group", "groups"), [(0, 1), (4, 18), (36, 2), (32, 3), (72, 1), (100, 1)])
def test_a_group_that_does_not_divide_is_the_largest_divisor_below(group: int, groups: int) -> None:
    quantizer = WeightQuantizer(torch.randn(5, 8, 3, 3), bits=4, group=group)
    assert quantizer.groups == groups and quantizer.scale.shape == (5, groups)


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3, 3)])
def test_each_group_has_its_own_scale(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(*shape)
    grouped = WeightQuantizer(weight, bits=4, group=weight[0].numel() // 2)
    halves = [WeightQuantizer(half, bits=4) for half in weight.split(4, dim=1)]
    torch.testing.assert_close(grouped.scale, torch.cat([half.scale for half in halves], dim=1))
    expected = torch.cat([half(part) for half, part in zip(halves, weight.split(4, dim=1), strict=True)], dim=1)
    torch.testing.assert_close(grouped(weight), expected)


def test_the_layout_of_memory_stays() -> None:
    weight = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last)
    rounded = WeightQuantizer(weight, bits=4, group=4)(weight)
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_groups_go_across_channels_in_the_order_that_targets_store() -> None:
    weight = torch.arange(1.0, 19.0).reshape(1, 2, 3, 3)
    scale = WeightQuantizer(weight.to(memory_format=torch.channels_last), bits=8, group=6).scale
    assert scale.shape == (1, 3)
    torch.testing.assert_close(scale * 127, torch.tensor([[6.0, 12.0, 18.0]]), rtol=0.02, atol=0.0)


def observed(x: Tensor, *, symmetric: bool = False) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(symmetric=symmetric)
    quantizer.observing = True
    assert quantizer(x) is x
    assert quantizer.settle()
    return quantizer


def test_an_asymmetric_range_is_what_was_seen() -> None:
    quantizer = observed(torch.linspace(-1.0, 3.0, 2001)[None])
    assert quantizer.log_scale.exp().item() == pytest.approx(4 / 255, rel=1e-3) and int(quantizer.zero_point) == 64
    ends = quantizer(torch.tensor([[-9.0, 0.0, 9.0]])).flatten().tolist()
    assert ends == pytest.approx([-1.0, 0.0, 3.0], abs=0.01) and ends[1] == 0.0


def test_a_symmetric_range_has_zero_in_its_middle() -> None:
    quantizer = observed(torch.linspace(-1.0, 3.0, 2001)[None], symmetric=True)
    assert quantizer.log_scale.exp().item() == pytest.approx(3 / 127, rel=1e-3) and int(quantizer.zero_point) == 0
    assert quantizer(torch.tensor([[-9.0, 9.0]])).flatten().tolist() == pytest.approx([-128 * 3 / 127, 3.0], rel=1e-3)


def test_a_range_above_zero_still_holds_zero() -> None:
    quantizer = observed(torch.linspace(2.0, 5.1, 2001)[None])
    assert int(quantizer.zero_point) == 0 and quantizer.log_scale.exp().item() == pytest.approx(0.02, rel=1e-3)


def test_outliers_do_not_make_the_range() -> None:
    x = torch.linspace(0.0, 1.0, 60_000)
    x[77] = 1000.0
    assert observed(x[None]).log_scale.exp().item() == pytest.approx(1 / 255, rel=1e-2)


def test_nothing_runs_unobserved_unnoticed() -> None:
    assert bool(ActivationQuantizer()(torch.ones(1, 2)).isnan().all())


def test_activations_keep_their_dtype_and_are_rounded_in_single_precision() -> None:
    quantizer = observed(torch.linspace(0.0, 255.0, 2001)[None])
    x = torch.arange(0, 255, 2.0)[None]
    assert quantizer(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(quantizer(x.bfloat16()), quantizer(x).bfloat16())
