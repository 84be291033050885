"""Target `tensorrt`: an ONNX a tower that is strongly typed, from which the device builds its engine.

The portable ONNX is typed already: its casts are explicit, and at fp16 LayerNorm, softmax and the final normalisation
compute in float32. What is left is what TensorRT cannot do, and to look for what it would refuse.
"""

from __future__ import annotations

from edgeclip.manifest import Tower
from edgeclip.quantize import graphs, lint
from edgeclip.quantize.float_first import float_first


def to_tensorrt(onnx_model: bytes, tower: Tower) -> dict[str, bytes]:
    """Turn a tower's portable ONNX, fp32 or fp16, into one that TensorRT builds.

    Returns:
        `{tower}.onnx`, of the same signature and values.

    Raises:
        ExportError: TensorRT would refuse it; names the nodes, and what to do.
    """
    model = graphs.parse(onnx_model)
    float_first(model.graph)
    made = graphs.serialize(model)
    lint.check(made, f"{tower} tower")
    return {f"{tower}.onnx": made}
