"""The openvino library, imported without its telemetry.

`import openvino` otherwise starts a child process that reports to an analytics service, and writes a counter into the
home directory. A device SDK has no business doing either, and importing takes 30 ms less without.
"""

from __future__ import annotations

import sys
from typing import Any, cast

if "openvino" not in sys.modules:
    # Python reads None as "cannot be imported"; openvino then uses its own stand-in that does nothing.
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)

import openvino as ov

__all__ = ["ov"]
