"""The openvino library, imported without its telemetry and without its model converter.

`import openvino` otherwise starts a child process that reports to an analytics service, and writes a counter into the
home directory. A device SDK has no business doing either. The converter alone takes half of the 0.1 s that importing
takes; it is found when somebody asks for it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, cast

_CONVERTER = "openvino.tools.ovc"


def _import() -> Any:
    """Python reads None among the loaded modules as "cannot be imported"; openvino does without either."""
    loaded = cast("dict[str, Any]", sys.modules)
    if "openvino" in loaded:
        return loaded["openvino"]
    loaded.setdefault("openvino_telemetry", None)
    loaded[_CONVERTER] = None
    try:
        library = import_module("openvino")
    finally:
        del loaded[_CONVERTER]
    if not hasattr(library, "convert_model"):
        cast("Any", library).__getattr__ = _late
    return library


def _late(name: str) -> Any:
    """`openvino.convert_model`, for the program around us."""
    if name == "convert_model":
        return import_module(_CONVERTER).convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


ov = _import()
