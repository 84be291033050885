"""The TensorRT library, whichever of its flavours is installed, and the one logger that it takes.

TensorRT keeps the first logger that a process gives it, so there is one for the whole process. It prints nothing: what
the library says goes to Python's logging at level DEBUG, and its errors are kept for the exception that follows them.
"""

from __future__ import annotations

import logging
from collections import deque
from importlib import import_module
from importlib.util import find_spec
from typing import Any

FLAVOURS = ("tensorrt", "tensorrt_rtx")
"""Names of the library, in order of preference."""
_KEPT = 8

said = logging.getLogger("edgeclip.tensorrt")


def flavour() -> str:
    """The name of the flavour that is installed. Imports nothing.

    Raises:
        ModuleNotFoundError: there is none.
    """
    for name in FLAVOURS:
        if find_spec(name) is not None:
            return name
    raise ModuleNotFoundError(f"no module named {' or '.join(FLAVOURS)}", name=FLAVOURS[0])


trt: Any = import_module(flavour())


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Called from the library's own threads."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=_KEPT)

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(" ".join(message.split()))
        if said.isEnabledFor(logging.DEBUG):
            said.debug("%s: %s", severity, message)


logger = _Logger()


def version() -> str:
    """Of the library, with its flavour where that is not the full TensorRT, as `rtx 1.7.1.116`."""
    number = str(trt.__version__)
    return number if flavour() == FLAVOURS[0] else f"{flavour().removeprefix('tensorrt_')} {number}"


def complaints() -> str:
    """The errors that the library has logged since the last call, on one line; "" where there were none."""
    lines = []
    while logger.errors:
        lines.append(logger.errors.popleft())
    return "; ".join(lines)
