"""Rounding that gradients pass, and the two quantizers that are made of it.

    x → x / s → clamp to [low, high] → round → · s

Backward, rounding counts as the identity (straight-through estimator, arXiv 1308.3432). So x gets the gradient where
it was not clamped, and s gets round(x / s) − x / s there, low or high elsewhere (LSQ, arXiv 1902.08153, eq. 3).

Scales are learned as their logarithms: they stay positive, and a step of Adam changes each by the same part of itself,
whatever its size (TQT, arXiv 1903.08066 §3 and app. B).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from edgeclip.quantize.groups import group_size

_TINY = 1e-8
"""Scales are not below: what is always 0 has no range."""
_RATIOS = 41
_PERCENTILE = 1e-4
"""What is cut from either end of an activation's values when its range is observed."""
_SAMPLE = 1 << 16
"""Values of an activation that are looked at; percentiles of more are no better, and slow."""


def fake_quantize(x: Tensor, scale: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """x rounded to multiples of `scale` between `low` and `high` of them; rounds half to even, as ONNX does.

    Args:
        x: float32 [...].
        scale: float32, above 0; broadcasts to x.
        low, high: whole numbers; tensors of one element where they are not constants.
    """
    clamped = (x / scale).clamp(low, high)  # type: ignore[arg-type]
    return (clamped + (clamped.round() - clamped).detach()) * scale


def damp_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient comes back times `factor`."""
    return x * factor + (x * (1 - factor)).detach()


def lsq_factor(values: int, high: int) -> float:
    """What balances the gradient of a scale, the sum over so many values, with a weight's. Source: LSQ, §2.2."""
    return 1.0 / math.sqrt(values * high)


class WeightQuantizer(nn.Module):
    """Symmetric rounding of a weight, one scale for each group of an output channel's weights, or for all of them."""

    def __init__(self, weight: Tensor, bits: int = 8, group: int = 0) -> None:
        """
        Args:
            weight: [O, I, ...], from which the scales start.
            bits: 8 or 4; integers are −127 to 127 or −7 to 7.
            group: weights of a row that share a scale, or the largest divisor of its length below; 0: all.
        """
        super().__init__()
        self.bits = bits
        self.high = 2 ** (bits - 1) - 1
        length = weight[0].numel()
        self.groups = length // group_size(length, group) if group else 1
        scale = _best_scales(weight.detach().float().reshape(len(weight), self.groups, -1), self.high)
        # One-dimensional, like the other parameters that do not decay.
        self.log_scale = nn.Parameter(scale.log().flatten())

    @property
    def scale(self) -> Tensor:
        """float32 [O, G]."""
        return self.log_scale.exp().view(-1, self.groups)

    def forward(self, weight: Tensor) -> Tensor:
        """[O, I, ...] to the same, in the same layout of memory."""
        values = weight.numel() // self.log_scale.numel()
        scale = damp_gradient(self.log_scale, lsq_factor(values, self.high)).exp()
        if self.groups > 1:
            layout = torch.channels_last if _is_channels_last(weight) else torch.contiguous_format
            scale = scale.repeat_interleave(values).view(weight.shape).contiguous(memory_format=layout)
        else:
            scale = scale.view(-1, *(1,) * (weight.ndim - 1))
        return fake_quantize(weight, scale, -self.high, self.high)


class ActivationQuantizer(nn.Module):
    """8-bit rounding of an activation, one scale a tensor: uint8 with a zero point, or int8 with 0.

    The range must be observed before: `observing`, then forward passes, then `settle`.
    """

    zero_point: Tensor

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.observing = False
        # NaN until observed, so that nothing can run unobserved without a notice.
        self.log_scale = nn.Parameter(torch.full((1,), math.nan))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self._ranges: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] of any float dtype to the same; while observing, x itself."""
        if self.observing:
            self._ranges.append(_range(x.detach().float()))
            return x
        bottom, levels = (-128, 127) if self.symmetric else (0, 255)
        log_scale = damp_gradient(self.log_scale, lsq_factor(x[0].numel(), levels))
        low = bottom - self.zero_point
        return fake_quantize(x.float(), log_scale.exp(), low, low + (levels - bottom)).to(x.dtype)

    @torch.no_grad()
    def settle(self) -> bool:
        """Take the mean of the observed ranges; False where there are none. The zero point stays as it is from now."""
        self.observing = False
        if not self._ranges:
            return False
        low, high = torch.stack(self._ranges).mean(0).tolist()
        self._ranges.clear()
        scale = max(-low, high) / 127 if self.symmetric else (high - low) / 255
        self.log_scale.fill_(math.log(max(scale, _TINY)))
        self.zero_point.fill_(0 if self.symmetric else min(255, round(-low / max(scale, _TINY))))
        return True


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)


def _best_scales(rows: Tensor, high: int) -> Tensor:
    """float32 [O, G]: of some parts of the largest magnitude, the one with the least squared error.

    Few values are at the end of the range, and with 4 bits it pays to clamp them. Source: arXiv 1902.06822 §3.1.
    """
    largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY * high)
    best = least = cast("Tensor", None)
    for ratio in torch.linspace(1.0, 0.4, _RATIOS).tolist():
        scale = largest * (ratio / high)
        error = (fake_quantize(rows, scale, -high, high) - rows).square().sum(dim=-1, keepdim=True)
        better = None if best is None else error < least
        best = scale if better is None else torch.where(better, scale, best)
        least = error if better is None else torch.where(better, error, least)
    return best.squeeze(-1)


def _range(x: Tensor) -> Tensor:
    """[2]: percentiles near both ends, widened to hold 0, which is always kept exactly."""
    flat = x.flatten()
    flat = flat[:: max(1, flat.numel() // _SAMPLE)]
    ends = torch.quantile(flat, torch.tensor([_PERCENTILE, 1 - _PERCENTILE], device=x.device))
    return torch.stack([ends[0].clamp(max=0.0), ends[1].clamp(min=0.0)])
