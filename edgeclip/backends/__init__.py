"""The engines that can run an artifact. A new backend is one file and one row here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
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
    libraries: tuple[str, ...]
    """Any one of them will do."""
    extra: str
    needs: tuple[str, ...] = ()
    """Further modules, all of them."""
    device: str = "cpu"
    """What it runs on where no device is named."""
    probe: str = ""
    """A module whose `present()` says whether that device is there; "" where it always is."""
    install: str = ""
    """How to get it, where the extra alone does not bring it."""
    platform: str = ""
    """The only `sys.platform` that it runs on; "" where it runs on all."""
    elsewhere: str = ""
    """What to do on other platforms."""
    automatic: bool = True
    """Whether `auto` may take it."""


# In order of preference for `backend="auto"`.
BACKENDS: dict[str, Entry] = {
    "tensorrt": Entry(
        "edgeclip.backends.trt",
        ("tensorrt",),
        ("tensorrt", "tensorrt_rtx"),
        "tensorrt",
        needs=("cuda.bindings",),
        device="cuda",
        probe="edgeclip.backends.cuda",
        install="pip install 'edgeclip[tensorrt-rtx]'; on a Jetson: edgeclip[tensorrt], with TensorRT from JetPack",
    ),
    "openvino": Entry("edgeclip.backends.ov", ("openvino", "onnx"), ("openvino",), "openvino"),
    "onnxruntime": Entry("edgeclip.backends.ort", ("onnx",), ("onnxruntime",), "onnx"),
    "coreml": Entry(
        "edgeclip.backends.coreml",
        ("coreml",),
        ("coremltools",),
        "coreml",
        device="all",
        platform="darwin",
        elsewhere="on this machine, `--backend coreml-reference` carries out the same artifacts, slowly",
    ),
    "coreml-reference": Entry("edgeclip.backends.coreml_reference", ("coreml",), ("numpy",), "coreml", automatic=False),
}
_SYSTEMS = {"darwin": "macOS"}


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
    return not missing(name)


def missing(name: str) -> list[str]:
    """What the backend lacks, in words. Imports nothing but the packages that hold a module."""
    row = entry(name)
    if _is_elsewhere(row):
        return [_SYSTEMS[row.platform]]
    lacking = [] if any(_found(module) for module in row.libraries) else [" or ".join(map(repr, row.libraries))]
    return lacking + [repr(module) for module in row.needs if not _found(module)]


def remedy(name: str) -> str:
    """What to do to get the backend, or what serves in its place where it cannot be had."""
    row = entry(name)
    return row.elsewhere if _is_elsewhere(row) else row.install or f"pip install 'edgeclip[{row.extra}]'"


def ready(name: str) -> bool:
    """Whether the backend's library can be found and, where that is not certain, its device too."""
    if not installed(name):
        return False
    probe = entry(name).probe
    return not probe or bool(import_module(probe).present())


def runs_on(name: str, device: str | None) -> bool:
    """Whether a device may be one of the backend's, as far as its name tells: TensorRT has no CPU."""
    own = entry(name).device
    return device is None or own in ("cpu", "all") or device.partition(":")[0] == own


def version(name: str) -> str:
    """The installed version of the backend's library; "" where there is none. Imports no engine."""
    return next((_version(library) for library in entry(name).libraries if _found(library)), "")


def accelerator(name: str) -> str:
    """What the backend computes on beside the CPU, with its driver; "" where nothing is known of it."""
    probe = entry(name).probe
    return str(import_module(probe).describe(0)) if probe and ready(name) else ""


def get(name: str) -> Backend:
    """The backend's module, its library imported.

    Raises:
        TargetUnavailableError: the library is not installed, or does not import.
    """
    row = entry(name)
    if lacking := missing(name):
        others = ", ".join(other for other in BACKENDS if ready(other)) or "none"
        what = " and ".join(lacking)
        why = f"it needs {what}" if _is_elsewhere(row) else f"the library {what} is not installed"
        raise TargetUnavailableError(f"backend {name}: {why}; available here: {others}", hint=remedy(name))
    try:
        return cast("Backend", import_module(row.module))
    except ImportError as exc:
        raise TargetUnavailableError(f"backend {name}: a library does not import: {exc}") from exc


def _is_elsewhere(row: Entry) -> bool:
    return row.platform not in ("", sys.platform)


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False


def _version(library: str) -> str:
    """By the folder that a wheel has beside its package, which PEP 427 names; the standard library knows the rest, but
    takes longer to import than all else that a load asks before its engine."""
    spec = find_spec(library)
    beside = [Path(place).parent for place in (spec.submodule_search_locations or ())] if spec else []
    found = [path.name for folder in beside for path in folder.glob(f"{library}-*.dist-info")]
    if len(found) == 1:
        return found[0].removeprefix(f"{library}-").removesuffix(".dist-info")
    from importlib import metadata

    names = metadata.packages_distributions().get(library, [])  # onnxruntime-gpu brings onnxruntime
    return metadata.version(names[0]) if names else ""
