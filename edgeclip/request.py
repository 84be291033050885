"""What `load` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeclip.manifest import Compute, Precision, Tower


@dataclass(frozen=True)
class Request:
    """Everything that `load` was asked for: a model is made again from it, in another process for instance."""

    path: Path
    backend: str = "auto"
    precision: Precision | None = None
    tower: Tower | None = None
    device: str | None = None
    """None is the backend's own."""
    compute: Compute = "f32"
    threads: int | None = None
    expect_digest: str | None = None
    text_cache: bool = True
    tuned: bool = False
    """Whether the device file may choose what nothing else was asked for."""
    batch: int | None = None
    """Images per run of the engine; None is the usual number."""
    because: str = ""
    """Why this backend and precision, where it was not the caller who named them."""
