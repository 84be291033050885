"""Small ML programs, written with coremltools' builder and read back by our own reader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.backends import mil_program
from edgeclip.backends.base import Array
from edgeclip.backends.mil_executor import Executor

pytest.importorskip("coremltools", reason="coremltools is not installed")
logging.getLogger("coremltools").setLevel(logging.ERROR)  # it says which libraries it has not been tested with

import coremltools as ct  # noqa: E402
from coremltools import proto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.backend.mil.load import load  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

IOS16, IOS17, IOS18 = ct.target.iOS16, ct.target.iOS17, ct.target.iOS18
FLOATS = {"fp16": np.float16, "fp32": np.float32}
WEIGHTS = "@model_path/weights/weight.bin"

__all__ = ["FLOATS", "IOS16", "IOS17", "IOS18", "executor", "mb", "proto", "run", "specification", "types"]


def specification(
    build: Callable[..., Any], inputs: Sequence[Any], opset: Any, weights: Path, description: Any = None
) -> bytes:
    """A model whose program takes arrays of these shapes and types, and returns what `build` makes of them.

    Args:
        build: takes one variable an input; its parameters' names become the inputs'.
        inputs: arrays, or coremltools' own specifications of inputs.
        weights: a folder for its `weight.bin`.
        description: a `ModelDescription`, which says what an app hands over.
    """
    specs = [
        mb.TensorSpec(x.shape, dtype=types.numpy_type_to_builtin_type(x.dtype)) if isinstance(x, np.ndarray) else x
        for x in inputs
    ]
    program = mb.program(input_specs=specs, opset_version=opset)(build)
    described = load(
        program,
        str(weights),
        specification_version=opset.value,
        model_description=description or proto.Model_pb2.ModelDescription(),
    )
    return bytes(described.SerializeToString())


def executor(build: Callable[..., Any], inputs: Sequence[Array], opset: Any, weights: Path) -> Executor:
    """The program, read from its bytes and loaded."""
    data = specification(build, inputs, opset, weights)
    blob = weights / "weight.bin"
    return Executor(mil_program.parse(data), {WEIGHTS: blob.read_bytes()} if blob.exists() else {})


def run(build: Callable[..., Any], inputs: Sequence[Array], opset: Any, weights: Path) -> list[Array]:
    """The outputs of the program, in their order."""
    loaded = executor(build, inputs, opset, weights)
    given = dict(zip(loaded.program.inputs, inputs, strict=True))
    return list(loaded.run(given).values())
