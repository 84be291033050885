"""coremltools, and models in and out of it. Of child processes only: it takes seconds to import, and talks.

It is imported without libraries that it would load to convert models of other kinds; PyTorch among them, which takes
two seconds, unless the program has imported it before.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, cast

from edgeclip.manifest import Tower
from edgeclip.quantize import mlpackage

_USELESS = ("sklearn", "tensorflow", "xgboost", "libsvm", "transformers")
_HALVED = "_cast_fp16"
"""What coremltools appends to the name of an operation that it makes one of half precision."""


def _import() -> Any:
    """Python reads None among the loaded modules as "cannot be imported"."""
    loaded = cast("dict[str, Any]", sys.modules)
    loaded |= dict.fromkeys(_USELESS)
    loaded.setdefault("torch", None)
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools

    return coremltools


ct = _import()


def read(folder: Path, tower: Tower) -> Any:
    """The `MLModel` of a package in a folder. It cannot be run."""
    return ct.models.MLModel(str(folder / f"{tower}.mlpackage"), skip_model_load=True)


def store(model: Any, folder: Path, tower: Tower) -> None:
    """Write an `MLModel` as a package into a folder, without what changes between runs: dates and identifiers."""
    spec = model.get_spec()
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    weights = Path(model.weights_dir, "weight.bin").read_bytes()
    mlpackage.write(mlpackage.pack(tower, spec.SerializeToString(deterministic=True), weights), folder)


def name_of(operation: str) -> str:
    """The name that a layer has in ONNX, and so over all targets, from the name of its operation."""
    return operation.removesuffix(_HALVED).replace("__", ".")
