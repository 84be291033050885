"""What each precision means on each target.

`w8a16`, `w4a16`: weights alone are integers, one scale an output channel (w8) or a group of input channels (w4);
arithmetic stays in floating point. `w8a8`: weights and activations are 8-bit integers. `w6a16`: weights are places in
tables of 64 numbers. Core ML's `w4a16` has tables, too, of 16 numbers.
"""

from __future__ import annotations

from edgeclip.errors import UsageError
from edgeclip.manifest import Precision, Target

INTEGER: tuple[Precision, ...] = ("w8a16", "w8a8", "w6a16", "w4a16")
SCHEMES: dict[Target, tuple[Precision, ...]] = {
    "onnx": ("w8a16", "w8a8"),
    "openvino": ("w8a16", "w8a8", "w4a16"),
    "tensorrt": ("w8a8",),
    "coreml": ("w8a16", "w8a8", "w6a16", "w4a16"),
}
"""What can be made. Activations are asymmetric uint8 where the engine takes that (onnx, openvino), symmetric int8 with
zero point 0 for tensorrt and coreml. Weights are symmetric int8 everywhere."""

CORRECTED: set[tuple[Target, Precision]] = {("onnx", "w8a16"), ("openvino", "w4a16")}
"""Weights whose rounding makes up for itself, where there is data to do that on."""


def is_integer(precision: Precision) -> bool:
    """Whether the precision is made by quantizing."""
    return precision in INTEGER


def needs_calibration(precision: Precision) -> bool:
    """Whether the range of activations has to be measured."""
    return precision == "w8a8"


def uses_calibration(target: Target, precision: Precision) -> bool:
    """Whether calibration data changes what is made: the rounding of weights is corrected on it."""
    return needs_calibration(precision) or (target, precision) in CORRECTED


def check(target: Target, precision: Precision) -> None:
    """
    Raises:
        UsageError: the target has no such integer precision.
    """
    known = SCHEMES.get(target, ())
    if precision not in known:
        raise UsageError(
            f"target {target} has no {precision}", hint=f"it has: {', '.join(known) or 'no integer precision'}"
        )


def check_calibrated(precision: Precision, calibration: object | None) -> None:
    """
    Raises:
        UsageError: activations have to be measured, and there is nothing to measure them on.
    """
    if needs_calibration(precision) and calibration is None:
        raise UsageError(
            f"{precision} needs calibration data: the ranges of activations have to be measured",
            hint="--calib FOLDER, shards or a caption file, with pictures of the kind that the device will see",
        )


def check_measurable(max_drop_pt: float | None, data: object | None) -> None:
    """
    Raises:
        UsageError: a loss is bounded, and there is nothing to measure it on.
    """
    if max_drop_pt is not None and data is None:
        raise UsageError("--max-drop needs data to measure the loss on", hint="--eval DATA, or at least --calib DATA")
