"""The ranges that activations of a graph take on samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclip.backends.base import Array

BATCH = 8
"""Samples that are run at once: the activations of a batch are all in memory."""
_LEVELS = 255
_ONLY_ERRORS = 3


@dataclass(frozen=True)
class Range:
    """The lowest and the highest value of an activation."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Step of the asymmetric uint8 grid that holds the range, and 0 exactly."""
        span = max(self.high, 0.0) - min(self.low, 0.0)
        return span / _LEVELS if span > 0 else 1.0

    @property
    def zero_point(self) -> int:
        """The code of 0, in [0, 255]."""
        return int(np.clip(round(-min(self.low, 0.0) / self.scale), 0, _LEVELS))


def observe(proto: Any, names: Sequence[str], samples: Array, *, threads: int = 1) -> dict[str, Range]:
    """The range of each of these values over the samples.

    Args:
        proto: a ModelProto; it is not changed.
        names: of values that nodes compute, or of the input.
        samples: the graph's input, uint8 [N, S, S, 3] or int32 [N, C].
    """
    session = open_session(_with_outputs(proto, names), threads)
    name = session.get_inputs()[0].name
    found: dict[str, Range] = {}
    for part in parts(samples):
        for key, values in zip(names, session.run(list(names), {name: part}), strict=True):
            seen = found.get(key, Range(np.inf, -np.inf))
            found[key] = Range(min(seen.low, float(values.min())), max(seen.high, float(values.max())))
    return found


def _with_outputs(proto: Any, names: Sequence[str]) -> bytes:
    from onnx import ValueInfoProto

    changed = type(proto)()
    changed.CopyFrom(proto)
    present = {value.name for value in changed.graph.output}
    changed.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in present)
    return bytes(changed.SerializeToString())


def open_session(model: bytes, threads: int) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def parts(samples: Array) -> Iterator[Array]:
    """The samples in batches."""
    for start in range(0, len(samples), BATCH):
        yield samples[start : start + BATCH]
