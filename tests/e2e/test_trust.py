"""Nothing that was changed reaches an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from edgeclip.selection import select

ENGINES = "openvino onnxruntime torch"

REFUSED = """
import json, pathlib, sys
import edgeclip
path, work, offsets, backend = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
data = path.read_bytes()
said = {}
for name, offset in offsets.items():
    changed = bytearray(data)
    changed[offset] ^= 1
    work.write_bytes(changed)
    try:
        if backend == "none":
            edgeclip.Bundle.open(work).verify_files()
        else:
            edgeclip.load(work, backend=backend, precision="fp32")
        said[name] = "accepted"
    except edgeclip.EdgeClipError as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"said": said, "engines": [m for m in sys.argv[5].split() if m in sys.modules]}))
"""


def offsets(path: Path, names: set[str]) -> dict[str, int]:
    """A byte in the middle of each file, as it lies in the bundle: entries are stored as they are."""
    data, bundle = path.read_bytes(), Bundle.open(path)
    return {name: data.index(bundle.read(name)) + len(bundle.read(name)) // 2 for name in sorted(names)}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "none"])
def test_a_flipped_bit_in_any_file_is_refused_by_name_before_an_engine_is_imported(
    tiny_bundle: Path, backend: str, tmp_path: Path
) -> None:
    """By `load` in each file that it uses, and by the check of all files, with which `edgeclip verify` begins, in all."""
    manifest = Bundle.open(tiny_bundle).manifest
    names = {entry.path for entry in manifest.files}
    if backend != "none":
        chosen = select(manifest, backend=backend, precision="fp32").artifacts.values()
        names = {name for artifact in chosen for name in artifact.files} | {"tokenizer.json"}
    places = json.dumps(offsets(tiny_bundle, names))
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(tiny_bundle), str(tmp_path / "changed.edgeclip"), places, backend, ENGINES],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["engines"] == []
    assert set(result["said"]) == names
    for name, words in result["said"].items():
        assert words.startswith("BundleIntegrityError"), (name, words)
        assert name in words


def test_the_verify_command_hashes_every_file_before_it_imports_an_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    name = "openvino-fp16/image.bin"
    data = bytearray(tiny_bundle.read_bytes())
    data[offsets(tiny_bundle, {name})[name]] ^= 1
    changed = tmp_path / "changed.edgeclip"
    changed.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgeclip", "verify", str(changed), "--backend", "onnxruntime"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert f"{name} has sha256" in done.stderr
    assert "onnxruntime.capi" not in done.stderr
