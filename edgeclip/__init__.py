"""CLIP on edge devices: the same call, the same embedding, on every engine.

Importing this package loads nothing but the standard library; names are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeclip import errors as errors
    from edgeclip import quantized as quantized
    from edgeclip import templates as templates
    from edgeclip.bundle import Bundle as Bundle
    from edgeclip.errors import EdgeClipError as EdgeClipError
    from edgeclip.loading import load as load
    from edgeclip.model import Model as Model
    from edgeclip.zeroshot import Classifier as Classifier
    from edgeclip.zeroshot import Prediction as Prediction

__version__ = "0.1.0"
__all__ = ["Bundle", "Classifier", "EdgeClipError", "Model", "Prediction", "errors", "load", "quantized", "templates"]

_HOMES = {
    "Bundle": "bundle",
    "Classifier": "zeroshot",
    "EdgeClipError": "errors",
    "Model": "model",
    "Prediction": "zeroshot",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeclip' has no attribute {name!r}")
    module = import_module(f"edgeclip.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module
