"""Integer precisions of target `coreml`: weights, and activations, of a floating-point package made small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeclip.backends.base import Array
from edgeclip.manifest import Precision, Tower
from edgeclip.quantize import extremes, graphs, layers, mil_process, mlpackage
from edgeclip.quantize.made import Made

CHILD = "edgeclip.quantize.mlprogram_child"
QUANTIZED = "quantized.json"


def quantize_package(
    package: Mapping[str, bytes],
    model: bytes,
    tower: Tower,
    precision: Precision,
    *,
    samples: Array | None = None,
    keep: frozenset[str] = frozenset(),
) -> Made:
    """Quantize the package of a tower.

    | precision | weights of convolutions, linear layers and the token table |
    |---|---|
    | w8a16 | int8 and a scale a channel; a table of 256 numbers where that would lose much |
    | w8a8 | as w8a16; what layers take is rounded to int8, one scale a tensor, but not pixels |
    | w6a16 | a table of 64 numbers; before iOS 18 for each weight, else for each sixteen output channels |
    | w4a16 | a table of 16 numbers for each sixteen output channels |

    Args:
        package: in half precision, its files by name; for w4a16 of a system that has its tables.
        model: the tower's fp32 ONNX, which names the layers and is run on the samples.
        samples: what activations are measured on, for w8a8.
        keep: names of layers that stay as they are.

    Raises:
        UsageError: a name in `keep` is no layer's, or the samples are not the tower's.
        NonFiniteError: an activation is NaN or infinite.
        TargetUnavailableError: a library is not installed.
        ExportError: coremltools failed, crashed or took longer than an hour.
    """
    graph = graphs.parse(model).graph
    layers.check_kept(keep, layers.layers_of(graph))
    ranges = {}
    if precision == "w8a8":
        assert samples is not None
        ranges = _ranges(model, samples)
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as name:
        folder = Path(name)
        mlpackage.write(package, folder)
        options = {"tower": tower, "precision": precision, "keep": sorted(keep), "ranges": ranges}
        files = mil_process.run(CHILD, folder, options)
        return Made(files, frozenset(json.loads((folder / QUANTIZED).read_text("utf-8"))))


def _ranges(model: bytes, samples: Array) -> dict[str, list[float]]:
    """The lowest and the highest value that each layer takes, by its name."""
    measured = extremes.measure(model, samples)
    graph = graphs.parse(model).graph
    found = {}
    for node in graph.node:
        if node.op_type in layers.OPS:
            low, high = measured[node.input[0]].range_value
            found[node.name] = [float(low.min()), float(high.max())]
    return found
