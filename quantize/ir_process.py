"""Quantizing to OpenVINO IR in a child process, so that a crash or a hang of the library is an error, not our end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import ExportError, UsageError
from edgeclip.manifest import Precision, Tower
from edgeclip.quantize import graphs, layers
from edgeclip.quantize.made import Made
from edgeclip.quantize.scales import FILE as SCALES
from edgeclip.quantize.scales import Learned

TIME_LIMIT_S = 3600
CHILD = "edgeclip.quantize.ir_child"
Samples = NDArray[Any]
_INPUTS = {"image": ("uint8", 4, "uint8 [N, S, S, 3]"), "text": ("int32", 2, "int32 [N, C]")}


def quantize_in_child(
    model: bytes,
    tower: Tower,
    precision: Precision,
    keep: Iterable[str] = (),
    samples: Samples | None = None,
    *,
    scales: Learned | None = None,
    **options: Any,
) -> Made:
    """Let the child make `{tower}.xml` and `{tower}.bin`.

    Args:
        model: an fp32 tower in ONNX that has passed `check_model`.
        scales: that were learned, of this tower, layers named as in its graph; the layers that have none stay in
            floating point.
        options: for the child, over and above the tower, the precision and the kept layers.

    Raises:
        TargetUnavailableError: nncf or openvino is not installed.
        ExportError: the child failed, crashed or took longer than an hour.
    """
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        if samples is not None:
            np.save(folder / "samples.npy", samples, allow_pickle=False)
        if scales is not None:
            (folder / SCALES).write_bytes(scales.to_bytes())
        given = {"tower": tower, "precision": precision, "keep": sorted(keep), **options}
        (folder / "options.json").write_text(json.dumps(given), "utf-8")
        _run(folder)
        files = {file: (folder / file).read_bytes() for file in (f"{tower}.xml", f"{tower}.bin")}
        return Made(files, frozenset(json.loads((folder / "quantized.json").read_text("utf-8"))))


def check_model(model: bytes, keep: Iterable[str]) -> Any:
    """What can be judged without the library: weights, and names.

    Returns:
        The ONNX GraphProto.

    Raises:
        NonFiniteError: NaN or infinity in the weights.
        UsageError: a layer that shall be kept does not exist.
        TargetUnavailableError: `onnx` is missing.
        ExportError: it is not an ONNX model.
    """
    graph = graphs.parse(model).graph
    layers.check_finite_in(graph)
    layers.check_kept(keep, layers.layers_of(graph))
    return graph


def check_samples(tower: Tower, samples: Samples) -> None:
    """
    Raises:
        UsageError: there are no samples, or they are not inputs of the tower.
    """
    dtype, axes, wanted = _INPUTS[tower]
    if samples.dtype != dtype or samples.ndim != axes:
        found = f"{samples.dtype} {list(samples.shape)}"
        raise UsageError(f"calibration samples are {found}, the {tower} tower takes {wanted}")
    if len(samples) == 0:
        raise UsageError("no calibration samples", hint="give the folder of a few hundred pictures or captions")


def _run(folder: Path) -> None:
    command = [sys.executable, "-m", CHILD, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ExportError(f"nncf: quantizing took longer than {TIME_LIMIT_S} s") from exc
    if done.returncode == 0:
        return
    reason = _reason(done.stderr)
    for library in ("nncf", "openvino"):
        if reason == f"ModuleNotFoundError: No module named '{library}'":
            raise graphs.missing(library)
    how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed: {reason}"
    raise ExportError(f"nncf: quantizing {how}")


def _reason(output: str) -> str:
    """The exception's line, or the last two of a message of many lines, as OpenVINO writes them."""
    lines = output.strip().splitlines() or ["no message"]
    return lines[-1] if re.match(r"[\w.]+: ", lines[-1]) else " ".join(lines[-2:])
