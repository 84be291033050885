"""The engines that can run an artifact. A new backend is one file and one row here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from edgeclip.errors import TargetUnavailableError, UsageError
from edgeclip.manifest import Target

if TYPE_CHECKING:
    from edgeclip.backends.base import Backend


@dataclass(frozen=True)
class Entry:
    """A row of the table: where a backend lives, what it runs, and what it needs."""

    module: str
    targets: tuple[Target, ...]
    """Its own first; others are run where the bundle has none of its own."""
    library: str
    extra: str


# In order of preference for `backend="auto"`.
BACKENDS: dict[str, Entry] = {
    "openvino": Entry("edgeclip.backends.ov", ("openvino", "onnx"), "openvino", "openvino"),
    "onnxruntime": Entry("edgeclip.backends.ort", ("onnx",), "onnxruntime", "onnx"),
}


def entry(name: str) -> Entry:
    """The table's row.

    Raises:
        UsageError: no backend has this name.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", hint=f"one of: auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


def installed(name: str) -> bool:
    """Whether the backend's library can be found. Imports nothing."""
    return find_spec(entry(name).library) is not None


def get(name: str) -> Backend:
    """The backend's module, its library imported.

    Raises:
        TargetUnavailableError: the library is not installed, or does not import.
    """
    row = entry(name)
    if not installed(name):
        others = ", ".join(other for other in BACKENDS if installed(other)) or "none"
        raise TargetUnavailableError(
            f"backend {name}: the library {row.library!r} is not installed; available here: {others}",
            hint=f"pip install 'edgeclip[{row.extra}]'",
        )
    try:
        return cast("Backend", import_module(row.module))
    except ImportError as exc:
        raise TargetUnavailableError(f"backend {name}: {row.library!r} does not import: {exc}") from exc
