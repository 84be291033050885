"""w8a8 for target `openvino`: weights and activations in 8 bits, by NNCF's post-training quantization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeclip.manifest import Tower
from edgeclip.quantize.ir_process import Samples, check_model, check_samples, quantize_in_child
from edgeclip.quantize.made import Made

_OF_TRANSFORMERS = {"LayerNormalization", "Softmax"}


def quantize_ir(
    model: bytes,
    tower: Tower,
    samples: Samples,
    *,
    keep: Iterable[str] = frozenset(),
    transformer: bool | None = None,
) -> Made:
    """Quantize an fp32 tower. Weights become int8, one scale a channel; activations uint8 with a zero point.

    What stays in floating point: `keep`, all that lies before the first layer and after the last one, and a
    convolution that sees normalised pixels. Its share of the arithmetic is small, its share of the error was half.
    Patches, which can be made from the pixels themselves, are integers (`ir_patches`). What stays is stored in fp16.

    Args:
        model: ONNX.
        samples: inputs of the tower, uint8 [N, S, S, 3] or int32 [N, C], to measure activations on; all are used.
        keep: names of layers.
        transformer: smooth outliers of activations into the weights before, as transformers need it; None: as the
            graph has attention or layer normalization.

    Raises:
        UsageError: no samples, samples of another tower, or a name in `keep` that no layer has.
        NonFiniteError: NaN or infinity in the weights.
        TargetUnavailableError: a library is not installed.
        ExportError: NNCF failed, crashed or took longer than an hour.
    """
    check_samples(tower, samples)
    graph = check_model(model, keep)
    if transformer is None:
        transformer = is_transformer(graph)
    return quantize_in_child(model, tower, "w8a8", keep, samples, transformer=transformer)


def is_transformer(graph: Any) -> bool:
    """Whether an ONNX GraphProto has attention or layer normalization."""
    return any(node.op_type in _OF_TRANSFORMERS for node in graph.node)
