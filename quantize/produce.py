"""One tower, one target, one precision: which toolchain makes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from edgeclip.backends.base import Array
from edgeclip.manifest import Precision, Target, Tower
from edgeclip.quantize import scheme
from edgeclip.quantize.buildable import quantized_buildable
from edgeclip.quantize.made import Made

LIBRARIES: dict[Target, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "tensorrt": ("onnx", "onnxruntime"),
    "coreml": ("coremltools", "onnx", "onnxruntime"),
}
"""Distributions whose versions an artifact notes."""
_NOTHING: Mapping[str, bytes] = MappingProxyType({})


def produce(
    model: bytes,
    tower: Tower,
    target: Target,
    precision: Precision,
    samples: Array | None,
    keep: frozenset[str] = frozenset(),
    package: Mapping[str, bytes] = _NOTHING,
) -> Made:
    """Quantize a tower.

    Args:
        model: its fp32 ONNX.
        samples: what its activations are measured on, uint8 [N, S, S, 3] or int32 [N, C]. Weights alone need
            none; their rounding is corrected on them where there are any.
        keep: layers that stay in floating point.
        package: for target coreml, the files of its half-precision Core ML package.

    Raises:
        UsageError: the target has no such precision, a layer in `keep` does not exist, or samples are missing.
        NonFiniteError: a weight is NaN or infinite.
        TargetUnavailableError: the toolchain is not installed.
        ExportError: the toolchain failed, or TensorRT would refuse what it made.
    """
    scheme.check(target, precision)
    if target == "coreml":
        from edgeclip.quantize.mlprogram import quantize_package

        return quantize_package(package, model, tower, precision, samples=samples, keep=keep)
    if precision == "w8a8":
        assert samples is not None
        return _with_activations(model, tower, target, samples, keep)
    if target == "openvino":
        from edgeclip.quantize.ir_weights import quantize_ir_weights

        bits: Literal[4, 8] = 4 if precision == "w4a16" else 8
        return quantize_ir_weights(model, tower, bits=bits, keep=keep, samples=samples if bits == 4 else None)
    from edgeclip.quantize.onnx_weights import quantize_onnx_weights

    return quantize_onnx_weights(model, keep=keep, samples=samples)


def _with_activations(model: bytes, tower: Tower, target: Target, samples: Array, keep: frozenset[str]) -> Made:
    if target == "openvino":
        from edgeclip.quantize.ir import quantize_ir

        return quantize_ir(model, tower, samples, keep=keep)
    from edgeclip.quantize.qdq import quantize_onnx

    made = quantize_onnx(model, tower, samples, keep=keep, symmetric=target == "tensorrt")
    return quantized_buildable(made, tower) if target == "tensorrt" else made
