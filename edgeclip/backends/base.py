"""What the runtime asks of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import Artifact

Array = NDArray[Any]
Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How an artifact is to be run."""

    device: str = "cpu"
    threads: int = 0
    """CPU threads; 0 means those that this process may use."""
    compute: str = "f32"
    """Arithmetic of the engine: `f32`, `bf16` or `f16`; set explicitly, never left to the engine."""
    cache: bool = True
    """Whether compiled forms may be kept in the user's cache directory."""


@dataclass(frozen=True)
class Engine:
    """What really runs, as the engine itself reports it."""

    name: str
    version: str
    device: str
    compute: str
    threads: int


class Session(Protocol):
    """One artifact, loaded. `run` may be called from many threads at once."""

    engine: Engine

    def run(self, inputs: Array) -> Embeddings:
        """Run the graph. Input as the artifact's signature, [B, …]; returns [B, D] float32, owned by the caller.

        The caller's array is never written to.
        """

    def close(self) -> None:
        """Free the engine. A second call does nothing."""


class Backend(Protocol):
    """An engine library. A backend is a module with these functions."""

    def available(self) -> str | None:
        """None when usable here; otherwise the reason. Imports nothing heavy."""

    def open(self, artifact: Artifact, files: dict[str, bytes], options: Options) -> Session:
        """Load an artifact from the verified bytes of its files.

        Raises:
            TargetUnavailableError: the library or the device is missing.
            TargetLoadError: the engine refuses the graph.
        """
