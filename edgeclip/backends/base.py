"""What the runtime asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.buffers import Buffer
from edgeclip.errors import EdgeClipError, ResourceError, TargetLoadError, TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

Array = NDArray[Any]
Embeddings = NDArray[np.float32]
Files = dict[str, Buffer]


@dataclass(frozen=True)
class Options:
    """How an artifact is to be run."""

    device: str = "cpu"
    threads: int = 1
    """CPU threads of the engine."""
    compute: Compute = "f32"
    """Arithmetic of the engine; set explicitly, never left to its default."""


@dataclass(frozen=True)
class Engine:
    """What really runs, as the engine itself reports it."""

    name: str
    version: str
    device: str
    compute: Compute
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
    """An engine library: a module with these functions."""

    def devices(self) -> list[str]:
        """The devices that `Options.device` may name here, best first; empty where there is none.

        Raises:
            TargetUnavailableError: there is none, and the engine knows why.
        """

    def computes(self, device: str) -> list[Compute]:
        """The arithmetic that `Options.compute` may name on a device."""

    def describe(self, device: str) -> str:
        """What the device is, in words; "" where the engine does not know."""

    def open(self, artifact: Artifact, files: Files, options: Options) -> Session:
        """Load an artifact from the verified bytes of its files.

        `files` is consumed: entries are removed as the engine takes them, so that weights are not held twice.

        Raises:
            TargetUnavailableError: the device, or the arithmetic on it, is missing.
            TargetLoadError: the engine refuses the graph.
            ResourceError: not enough memory.
        """


def require_own_types(options: Options, name: str, types_of: str) -> None:
    """Of engines that leave the choice of types to what they run.

    Args:
        name: of the backend.
        types_of: what has the types, in a word.

    Raises:
        TargetUnavailableError: `compute` asks for an arithmetic.
    """
    if options.compute != "f32":
        raise TargetUnavailableError(
            f"{name} computes in the types of the {types_of}, not in {options.compute}",
            hint="leave `compute` at f32, or choose another precision",
        )


@contextmanager
def engine_errors(artifact: Artifact, doing: str) -> Iterator[None]:
    """Map whatever an engine raises onto our tree."""
    where = f"{artifact.file}: {doing}"
    try:
        yield
    except EdgeClipError:
        raise
    except MemoryError as exc:
        raise ResourceError(f"{where}: out of memory") from exc
    except Exception as exc:
        text = " ".join(str(exc).split())[:300]
        if "bad_alloc" in text or "out of memory" in text.lower() or "llocate" in text:
            raise ResourceError(f"{where}: out of memory: {text}", hint="a smaller batch or fewer threads") from exc
        raise TargetLoadError(f"{where}: {type(exc).__name__}: {text}") from exc
