"""Target `tensorrt`: an ONNX a tower that is strongly typed, from which the device builds its engine.

The portable ONNX is typed already: its casts are explicit, and at fp16 LayerNorm, softmax and the final normalisation
compute in float32. What is left is what TensorRT cannot do, and to look for what it would refuse: see
`quantize/buildable.py`, which integer artifacts go through, too.
"""

from __future__ import annotations

from edgeclip.manifest import Tower
from edgeclip.quantize.buildable import make_buildable


def to_tensorrt(onnx_model: bytes, tower: Tower) -> dict[str, bytes]:
    """Turn a tower's portable ONNX, fp32 or fp16, into one that TensorRT builds.

    Returns:
        `{tower}.onnx`, of the same signature and values.

    Raises:
        ExportError: TensorRT would refuse it; names the nodes, and what to do.
    """
    return {f"{tower}.onnx": make_buildable(onnx_model, tower)}
