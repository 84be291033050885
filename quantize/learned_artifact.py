"""One tower for one target, with the scales that were learned while it was trained with rounding."""

from __future__ import annotations

from edgeclip.manifest import Precision, Target, Tower
from edgeclip.quantize.buildable import quantized_buildable
from edgeclip.quantize.ir_process import check_model, quantize_in_child
from edgeclip.quantize.learned import with_scales
from edgeclip.quantize.made import Made
from edgeclip.quantize.scales import Learned


def produce_learned(
    model: bytes,
    tower: Tower,
    target: Target,
    precision: Precision,
    learned: Learned,
    keep: frozenset[str] = frozenset(),
) -> Made:
    """Quantize a tower as it was trained. What has no scales stays in floating point, but for the token table.

    Args:
        model: its fp32 ONNX.
        keep: layers that stay in floating point although they have scales.

    Raises:
        UsageError: scales of another precision, or not as the target takes them; a layer does not exist.
        NonFiniteError: a weight is NaN or infinite.
        TargetUnavailableError: the toolchain is not installed.
        ExportError: the toolchain failed, or TensorRT would refuse what it made.
    """
    learned.check(target, precision)
    check_model(model, keep)
    scales = {name: one for name, one in learned.tower(tower).items() if name not in keep}
    if target == "openvino":
        own = Learned(learned.precision, learned.symmetric, scales)
        return quantize_in_child(model, tower, precision, scales=own)
    if target == "onnx":
        return with_scales(model, scales, symmetric=learned.symmetric, table=True)
    return quantized_buildable(with_scales(model, scales, symmetric=True), tower)
