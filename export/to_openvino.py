"""Target `openvino`: an IR (`.xml` and `.bin`) a tower, converted from its ONNX.

Converting runs in a child process, so that a crash or a hang of the converter is an error, not our end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from edgeclip.errors import ExportError, TargetUnavailableError
from edgeclip.manifest import Precision, Tower

TIME_LIMIT_S = 900


def to_openvino(onnx_model: bytes, tower: Tower, precision: Precision) -> dict[str, bytes]:
    """Convert. At fp16 the weights are stored in half precision; the arithmetic is chosen when the model is loaded.

    Returns:
        `{tower}.xml` and `{tower}.bin`.

    Raises:
        TargetUnavailableError: openvino is not installed.
        ExportError: the converter failed, crashed or took longer than 15 minutes.
    """
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as folder:
        source, xml = Path(folder, "model.onnx"), Path(folder, f"{tower}.xml")
        source.write_bytes(onnx_model)
        _run_child(source, xml, half=precision == "fp16")
        return {name: Path(folder, name).read_bytes() for name in (f"{tower}.xml", f"{tower}.bin")}


def _run_child(source: Path, xml: Path, *, half: bool) -> None:
    command = [sys.executable, "-m", "edgeclip.export.openvino_child", str(source), str(xml), str(int(half))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ExportError(f"openvino: converting took longer than {TIME_LIMIT_S} s") from exc
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines()
    last = lines[-1] if lines else ""
    if "No module named 'openvino'" in last:
        raise TargetUnavailableError(
            "target openvino: the library is not installed", hint="pip install 'edgeclip[openvino]'"
        )
    how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed: {last}"
    raise ExportError(f"openvino: the converter {how}")
