"""From an ONNX that computes the right thing to one that TensorRT builds an engine from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeclip.manifest import Tower
from edgeclip.quantize import graphs, lint
from edgeclip.quantize.end_rows import pick_by_products
from edgeclip.quantize.float_first import float_first
from edgeclip.quantize.made import Made
from edgeclip.quantize.narrow import OPSET, narrow


def make_buildable(model: bytes, tower: Tower, *, quantized: bool = False) -> bytes:
    """Change what TensorRT cannot do, or was seen to do wrong, and refuse what is left of it.

    Args:
        quantized: it has symmetric Q/DQ and float32 between them, which becomes half precision. The opset is then 19
            at least.

    Returns:
        An ONNX of the same signature; of the same values, or as close as half precision is.

    Raises:
        ExportError: TensorRT would refuse it, or a weight is beyond half precision.
        TargetUnavailableError: `onnx` is missing.
    """
    parsed = graphs.parse(model)
    float_first(parsed.graph)
    pick_by_products(parsed)
    if quantized:
        parsed = _at_opset(parsed)
        narrow(parsed)
    made = graphs.serialize(parsed)
    lint.check(made, f"{tower} tower")
    return made


def quantized_buildable(made: Made, tower: Tower) -> Made:
    """As `make_buildable`, of a tower that was quantized."""
    name = f"{tower}.onnx"
    return replace(made, files={name: make_buildable(made.files[name], tower, quantized=True)})


def _at_opset(model: Any) -> Any:
    """At the first opset whose conversions take half precision, or the newer one that it has."""
    import onnx

    found = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return model if found >= OPSET else onnx.version_converter.convert_version(model, OPSET)
