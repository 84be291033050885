"""Cases of `mil_constexpr`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import IOS16, IOS17, IOS18, mb, types
from tests.mil_cases.case import RNG, Case, channels, exact, normal, weights

LEVELS = RNG.integers(-128, 128, (4, 6), dtype=np.int8)
SCALES = (np.abs(weights(4)) / 16 + np.float16(0.01)).astype(np.float16)
ZEROS = RNG.integers(-9, 9, 4, dtype=np.int8)
NIBBLES = RNG.integers(-8, 8, (4, 6)).astype(np.int8)
BLOCKS = weights(4, 2)
PALETTE = weights(16)
PICKS = RNG.integers(0, 16, (4, 6)).astype(np.uint8)
SPARSE = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
KEPT = weights(int(SPARSE.sum()))


def packed(values: Array, bits: int) -> Array:
    """As coremltools packs them: lowest bits first."""
    from coremltools.optimize._utils import pack_elements_into_bits

    found: Array = pack_elements_into_bits(values.reshape(-1), bits)
    return found


def constant(op: str, build: Callable[[Any], Any], reference: Callable[[], Tensor], opset: Any = IOS16) -> Case:
    """A compressed constant, times ones: nothing but constants would be no program."""
    return Case(
        op, lambda dtype: lambda x: mb.mul(x=x, y=build(dtype)), lambda x: x * reference(), (np.ones((4, 6)),), opset
    )


def dense() -> Tensor:
    whole = torch.zeros(4, 6, dtype=torch.float64)
    whole[torch.from_numpy(SPARSE != 0)] = exact(KEPT)
    return whole


def small(values: Array, kind: str) -> Array:
    """Integers of less than eight bits, as coremltools marks them."""
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


COMPRESSED = [
    constant(
        "constexpr_affine_dequantize",
        lambda dtype: mb.constexpr_affine_dequantize(
            quantized_data=LEVELS, zero_point=ZEROS, scale=SCALES.astype(dtype), axis=0
        ),
        lambda: (exact(LEVELS.astype(float)) - exact(ZEROS.astype(float))[:, None]) * exact(SCALES)[:, None],
    ),
    constant(
        "constexpr_affine_dequantize",
        lambda dtype: mb.constexpr_affine_dequantize(
            quantized_data=LEVELS.view(np.uint8), zero_point=np.uint8(7), scale=dtype(0.125), axis=1
        ),
        lambda: (exact(LEVELS.view(np.uint8).astype(float)) - 7) * 0.125,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=packed(PICKS, 4), lut=PALETTE.astype(dtype), shape=np.array([4, 6], np.uint32)
        ),
        lambda: exact(PALETTE)[torch.from_numpy(PICKS).long()],
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=packed(PICKS * 4, 6), lut=np.repeat(PALETTE, 4).astype(dtype), shape=np.array([4, 6], np.uint32)
        ),
        lambda: exact(PALETTE)[torch.from_numpy(PICKS).long()],
    ),
    constant(
        "constexpr_sparse_to_dense",
        lambda dtype: mb.constexpr_sparse_to_dense(
            nonzero_data=KEPT.astype(dtype), mask=packed(SPARSE, 1), shape=np.array([4, 6], np.uint32)
        ),
        dense,
    ),
    Case(
        "constexpr_cast",
        lambda _: (
            lambda x: mb.add(x=mb.cast(x=x, dtype="fp32"), y=mb.constexpr_cast(source_val=BLOCKS, output_dtype="fp32"))
        ),
        lambda x: (x + exact(BLOCKS)).float(),
        (normal(4, 2),),
    ),
    constant(
        "constexpr_blockwise_shift_scale",
        lambda dtype: mb.constexpr_blockwise_shift_scale(data=small(NIBBLES, "int4"), scale=BLOCKS.astype(dtype)),
        lambda: exact(NIBBLES.astype(float)) * exact(BLOCKS).repeat_interleave(3, 1),
        IOS18,
    ),
    constant(
        "constexpr_blockwise_shift_scale",
        lambda dtype: mb.constexpr_blockwise_shift_scale(
            data=LEVELS, scale=SCALES[:, None].astype(dtype), offset=ZEROS[:, None]
        ),
        lambda: (exact(LEVELS.astype(float)) - exact(ZEROS.astype(float))[:, None]) * exact(SCALES)[:, None],
        IOS18,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=small(PICKS % 4, "uint2"), lut=PALETTE[:8].reshape(2, 1, 4, 1).astype(dtype)
        ),
        lambda: torch.stack([exact(PALETTE)[p % 4 + 4 * (i // 2)] for i, p in enumerate(torch.tensor(PICKS).long())]),
        IOS18,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=small(PICKS[:2] % 2, "uint1"), lut=PALETTE[:4].reshape(1, 1, 2, 2).astype(dtype), vector_axis=0
        ),
        lambda: exact(PALETTE[:4]).reshape(2, 2)[torch.tensor(PICKS[:2] % 2).long()].permute(0, 2, 1).reshape(4, 6),
        IOS18,
    ),
    constant(
        "constexpr_sparse_to_dense",
        lambda dtype: mb.constexpr_sparse_to_dense(nonzero_data=KEPT.astype(dtype), mask=small(SPARSE, "uint1")),
        dense,
        IOS18,
    ),
]

STEPS = np.array([0.5, 0.25, 2], np.float16)
POINTS = np.array([3, 0, 250], np.uint8)
ROUNDING = [
    Case(
        "quantize",
        lambda dtype: lambda x: mb.quantize(input=x, scale=dtype(0.5), output_dtype="int8"),
        lambda x: (x / 0.5).round().clip(-128, 127).to(torch.int8),
        (np.array([0.25, 0.75, -0.25, 3.1, 99, -99]),),
        IOS17,
    ),
    Case(
        "quantize",
        lambda dtype: (
            lambda x: mb.quantize(input=x, scale=STEPS.astype(dtype), zero_point=POINTS, output_dtype="uint8", axis=1)
        ),
        lambda x: ((x / channels(STEPS, x)).round() + channels(POINTS, x)).clip(0, 255).to(torch.uint8),
        (normal(2, 3, 4) * 9,),
        IOS17,
    ),
    Case(
        "dequantize",
        lambda dtype: (
            lambda x: mb.dequantize(
                input=mb.quantize(input=x, scale=dtype(0.125), output_dtype="uint8"),
                scale=STEPS.astype(dtype),
                zero_point=POINTS,
                axis=1,
            )
        ),
        lambda x: ((x / 0.125).round().clip(0, 255) - channels(POINTS, x)) * channels(STEPS, x),
        (normal(2, 3, 4) * 9,),
        IOS17,
    ),
]


CASES = [*COMPRESSED, *ROUNDING]
