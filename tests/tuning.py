"""Device files and contenders that were never measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeclip import devicefile
from edgeclip.bundle import Bundle
from edgeclip.devicefile import DeviceFile, Loss, Measured
from edgeclip.loading import BUILT_IN


def device_file(of: Path = BUILT_IN, backend: str = "onnxruntime", **changes: Any) -> DeviceFile:
    """What `edgeclip tune` might have written of a bundle on this device."""
    found: dict[str, Any] = {
        "format_version": 1,
        "edgeclip": "0.1.0",
        "created": "2026-01-31T12:00:00Z",
        "bundle": Bundle.open(of).digest,
        "machine": devicefile.machine(backend),
        "backend": backend,
        "target": "onnx",
        "precision": "fp16",
        "device": "cpu",
        "compute": "f32",
        "threads": 1,
        "batch": 3,
        "goal": "latency",
        "rule": "the lowest latency",
        "loss": Loss(basis="golden vectors", drop_pt=None, bound_pt=0.0, budget_pt=0.5),
        "measured": Measured(
            image_ms=10.0, text_ms=1.0, images_per_s=100.0, load_ms=100.0, peak_rss_mb=150.0, size_bytes=7_000_000
        ),
    }
    return DeviceFile(**found | changes)


def keep(file: DeviceFile, of: Path = BUILT_IN) -> Path:
    """Put a device file where `edgeclip.load` looks for that of a bundle."""
    path = place(of)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(devicefile.encode(file))
    return path


def elsewhere(**changes: Any) -> DeviceFile:
    """A device file of the built-in model, of a machine that differs from this one."""
    return device_file(machine=msgspec.structs.replace(devicefile.machine("onnxruntime"), **changes))


def place(of: Path = BUILT_IN) -> Path:
    """Where `edgeclip.load` looks."""
    path = devicefile.path_of(Bundle.open(of).digest)
    assert path is not None
    return path
