"""Whole processes: from start to the first embedding, and what a command line costs before it does anything.

The files that a process reads are in the system's page cache; only the process is cold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import TargetUnavailableError

_PEAK = """
import pathlib
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.is_file() else []
print(next((line.split()[1] for line in lines if line.startswith("VmHWM")), 0))
"""
_EDGECLIP = """
import sys
import edgeclip
bundle, backend, tower, precision, compute, photograph = sys.argv[1:]
options = {"backend": backend, "tower": tower or None, "precision": precision, "compute": compute}
model = edgeclip.load(bundle, tuned=False, **options)
assert model.encode_image(photograph).shape == (1, model.info.embed_dim)
print("embedded", flush=True)
"""
_PEER = """
import sys
import torch
from PIL import Image
from transformers import {kind}
from transformers.models.clip import CLIPImageProcessorPil
checkpoint, threads, dtype, photograph = sys.argv[1:]
dtype = getattr(torch, dtype)
torch.set_num_threads(int(threads))
model = {kind}.from_pretrained(checkpoint, dtype=dtype).eval()
processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
with torch.inference_mode():
    inputs = processor(images=Image.open(photograph), return_tensors="pt").to(dtype)
    features = {features}
    features = features.float()
    features = (features / features.norm(dim=-1, keepdim=True)).numpy()
assert features.shape == (1, 512)
print("embedded", flush=True)
"""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Child:
    """What one process took."""

    wall_s: float
    """From its start to its first line of output, or to its end where it prints none."""
    cpu_s: float
    """User and system, of all its threads, to its end."""
    peak_mb: float
    """Resident memory at its highest; 0 where it was not asked or the system does not tell."""


def embedding(
    bundle: Path,
    photograph: Path,
    tower: str = "",
    precision: str = "fp32",
    compute: str = "f32",
    backend: str = "auto",
) -> list[str]:
    """A process that embeds one photograph with edgeclip, as it comes; both towers are loaded, or one."""
    return [sys.executable, "-c", _EDGECLIP + _PEAK, str(bundle), backend, tower, precision, compute, str(photograph)]


def peer_embedding(
    checkpoint: Path, photograph: Path, threads: int, *, image_only: bool = False, dtype: str = "float32"
) -> list[str]:
    """A process that does the same with transformers."""
    kind, features = "CLIPModel", "model.get_image_features(**inputs).pooler_output"
    if image_only:
        kind, features = "CLIPVisionModelWithProjection", "model(**inputs).image_embeds"
    code = _PEER.format(kind=kind, features=features) + _PEAK
    return [sys.executable, "-c", code, str(checkpoint), str(threads), dtype, str(photograph)]


def bare() -> list[str]:
    """A process that does nothing but say how large it is."""
    return [sys.executable, "-c", _PEAK]


def nothing() -> list[str]:
    """A process that does nothing at all."""
    return [sys.executable, "-c", "pass"]


def cli_help() -> list[str]:
    """The command line's help."""
    return [sys.executable, "-m", "edgeclip", "--help"]


def bare_import() -> list[str]:
    """An import of the package."""
    return [sys.executable, "-c", "import edgeclip"]


def run(command: Sequence[str]) -> Child:
    """Run a process to its end.

    Peak memory is what the process itself reads last. The kernel's number for an ended child may be the parent's: a
    child shares its parent's memory until it executes.

    Raises:
        TargetUnavailableError: it failed.
    """
    environment = os.environ | _OFFLINE
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        wall = time.perf_counter() - started
        rest = process.stdout.read()
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TargetUnavailableError(f"a process that was to be timed failed: {errors.strip()[-500:]}")
    lines = (first + rest).split()
    peak_kb = int(lines[-1]) if lines and lines[-1].isdigit() else 0
    return Child(wall, usage.ru_utime + usage.ru_stime, peak_kb * 1024 / 1e6)
