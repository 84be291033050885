"""w8a16 and w4a16 for target `openvino`: weights in 8 or 4 bits, by NNCF's weight compression."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgeclip.manifest import Precision, Tower
from edgeclip.quantize.ir_process import Samples, check_model, check_samples, quantize_in_child
from edgeclip.quantize.made import Made

_PRECISIONS: dict[int, Precision] = {8: "w8a16", 4: "w4a16"}


def quantize_ir_weights(
    model: bytes,
    tower: Tower,
    *,
    bits: Literal[8, 4],
    keep: Iterable[str] = frozenset(),
    samples: Samples | None = None,
) -> Made:
    """Compress the weights of an fp32 tower, symmetrically: at 8 bits one scale a channel, at 4 bits one a group of 32.

    The token table is compressed too. Layers in `keep` and position embeddings are stored in fp16, biases and
    normalization in fp32.

    Args:
        model: ONNX.
        keep: names of layers that stay in floating point.
        samples: inputs of the tower, uint8 [N, S, S, 3] or int32 [N, C]. At 4 bits the rounding is
            corrected on the first 64 of them, which takes minutes; at 8 bits nothing needs them.

    Raises:
        UsageError: samples of another tower or none in the array, or a name in `keep` that no layer has.
        NonFiniteError: NaN or infinity in the weights.
        TargetUnavailableError: a library is not installed.
        ExportError: NNCF failed, crashed or took longer than an hour.
    """
    if samples is not None:
        check_samples(tower, samples)
    check_model(model, keep)
    return quantize_in_child(model, tower, _PRECISIONS[bits], keep, samples if bits == 4 else None)
