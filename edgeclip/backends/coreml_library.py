"""The coremltools library, imported without what it says about other libraries.

It logs a warning for each library beside it that it was not tested with, and for each part of itself that lacks on this
platform.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

logging.getLogger("coremltools").setLevel(logging.ERROR)
ct: Any = import_module("coremltools")
