"""The CUDA runtime, as far as the TensorRT backend needs it: which GPUs there are, memory, streams, graphs.

Asked before TensorRT is, which on a machine without a GPU hands out objects that crash the process when they are used.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import runtime

from edgeclip.errors import TargetUnavailableError

KERNEL_MODULE = Path("/sys/module/nvidia/version")
NO_GPU_HINT = "install the NVIDIA driver and see that `nvidia-smi` lists the GPU; on a Jetson, JetPack brings both"


class CudaError(RuntimeError):
    """A call that CUDA refused."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    ordinal: int
    name: str
    compute_capability: str
    """As `8.7`."""
    memory_bytes: int
    driver: str
    """The CUDA version that the driver supports, and the driver's own where it can be read: `13.0 (580.82.07)`."""

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver {self.driver}"


def check(result: tuple[Any, ...]) -> Any:
    """What a call gave, without its status; None, one value, or a tuple of several.

    Raises:
        CudaError: naming CUDA's error.
    """
    status, *values = result
    if int(status) != 0:
        raise CudaError(_text(status))
    return values[0] if len(values) == 1 else tuple(values) or None


def count() -> int:
    """How many GPUs there are.

    Raises:
        TargetUnavailableError: none, and why.
    """
    try:
        found = check(runtime.cudaGetDeviceCount())
    except Exception as exc:  # bindings of some versions raise errors of their own where there is no driver
        text = " ".join(str(exc).split())[:200]
        raise TargetUnavailableError(f"no NVIDIA GPU found: {text}", hint=NO_GPU_HINT) from exc
    if not found:
        raise TargetUnavailableError("no NVIDIA GPU found: CUDA counts none", hint=NO_GPU_HINT)
    return int(found)


def present() -> bool:
    """Whether there is a GPU."""
    try:
        return count() > 0
    except TargetUnavailableError:
        return False


def use(ordinal: int) -> None:
    """Make a GPU the one that this thread's calls go to.

    Raises:
        TargetUnavailableError: there is no such GPU.
    """
    found = count()
    if not 0 <= ordinal < found:
        raise TargetUnavailableError(
            f"no GPU cuda:{ordinal}; there {'is' if found == 1 else 'are'} {found}", hint="`edgeclip doctor` lists them"
        )
    check(runtime.cudaSetDevice(ordinal))


def describe(ordinal: int) -> Gpu:
    """Facts about a GPU.

    Raises:
        TargetUnavailableError: there is no such GPU.
    """
    use(ordinal)
    facts = check(runtime.cudaGetDeviceProperties(ordinal))
    name = facts.name.decode(errors="replace") if isinstance(facts.name, bytes) else str(facts.name)
    return Gpu(
        ordinal,
        name.rstrip("\0"),
        f"{facts.major}.{facts.minor}",
        int(facts.totalGlobalMem),
        _driver(),
    )


def free_bytes(ordinal: int) -> int:
    """Memory of a GPU that nobody uses."""
    use(ordinal)
    free, _ = check(runtime.cudaMemGetInfo())
    return int(free)


def _driver() -> str:
    """The version that decides whether an engine still fits."""
    number = int(check(runtime.cudaDriverGetVersion()))
    text = f"{number // 1000}.{number % 1000 // 10}"
    with suppress(OSError):
        text += f" ({KERNEL_MODULE.read_text().strip()})"
    return text


def _text(status: Any) -> str:
    """CUDA's own words for an error, as `out of memory (cudaErrorMemoryAllocation, 2)`."""
    words = f"{status.name}, {int(status)}"
    with suppress(Exception):
        said = runtime.cudaGetErrorString(status)[1]
        words = f"{said.decode() if isinstance(said, bytes) else said} ({words})"
    return words
