"""The ranges of activations, measured on samples."""

from __future__ import annotations

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import NonFiniteError, ResourceError, UsageError
from edgeclip.quantize import graphs, layers
from edgeclip.quantize.graphs import Array

BATCH = 8
"""Samples that are run at once; every activation of a batch is in memory."""
OPS = (*layers.OPS, "Relu")
"""Operators whose inputs and outputs are measured."""
_REMEMBERED = 4
_ONLY_ERRORS = 3

Ranges = Any
"""ONNX Runtime's `TensorsData`: lowest and highest value of each activation, by name."""

_memory: OrderedDict[bytes, Ranges] = OrderedDict()


def measure(model: bytes, samples: Array, *, threads: int = 1) -> Ranges:
    """Run the samples and note the lowest and the highest value of every layer's input and output.

    Ranges depend on nothing but the model and the samples, and a search for layers to keep asks for the same ones
    again and again: those of the last few calls are remembered.

    Raises:
        UsageError: there are no samples, or they are not what the graph takes.
        NonFiniteError: an activation is NaN or infinite.
        TargetUnavailableError: onnxruntime is missing.
        ResourceError: no room for the temporary copy of the model.
    """
    parsed = graphs.parse(model)
    _check_samples(parsed.graph.input[0], samples)
    key = hashlib.sha256(model).digest() + hashlib.sha256(np.ascontiguousarray(samples).data).digest()
    if key not in _memory:
        _memory[key] = _measure(model, parsed.graph.input[0].name, samples, threads)
        while len(_memory) > _REMEMBERED:
            _memory.popitem(last=False)
    _memory.move_to_end(key)
    return _memory[key]


def _check_samples(value: Any, samples: Array) -> None:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    fixed = [dim.dim_value or None for dim in tensor.shape.dim]
    if samples.ndim < 1 or not len(samples):
        raise UsageError("no samples to calibrate on", hint="pass at least one; a few hundred make good ranges")
    fits = samples.ndim == len(fixed) and all(
        want in (None, got) for want, got in zip(fixed, samples.shape, strict=True)
    )
    if samples.dtype != dtype or not fits:
        want = ", ".join("N" if size is None else str(size) for size in fixed)
        raise UsageError(f"samples are {samples.dtype} {list(samples.shape)}, the graph takes {dtype} [{want}]")


def _measure(model: bytes, name: str, samples: Array, threads: int) -> Ranges:
    try:
        from onnxruntime.quantization import MinMaxCalibrater
    except ImportError as exc:
        raise graphs.missing("onnxruntime") from exc
    try:
        with tempfile.TemporaryDirectory(prefix="edgeclip-") as folder:
            plain, observed = Path(folder, "model.onnx"), Path(folder, "observed.onnx")
            plain.write_bytes(model)
            calibrater = MinMaxCalibrater(plain, OPS, str(observed))
            calibrater.augment_graph()
            calibrater.infer_session = _Watched(open_session(observed, threads))
            for batch in batches(samples):
                calibrater.collect_data(_Once({name: batch}))
            return calibrater.compute_data()
    except OSError as exc:
        raise ResourceError(f"calibrating: no temporary copy of the model: {exc.strerror or exc}") from exc


def open_session(model: bytes | Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
        TargetUnavailableError: onnxruntime is missing.
    """
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise graphs.missing("onnxruntime") from exc
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def batches(samples: Array) -> Iterator[Array]:
    """The samples, few at a time."""
    for start in range(0, len(samples), BATCH):
        yield samples[start : start + BATCH]


class _Once:
    """A data reader of one batch. Handing them over one by one keeps memory flat."""

    def __init__(self, feeds: dict[str, Array]) -> None:
        self._feeds: dict[str, Array] | None = feeds

    def get_next(self) -> dict[str, Array] | None:
        feeds, self._feeds = self._feeds, None
        return feeds


class _Watched:
    """A session whose outputs must be finite. What merges them would pass over NaN."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.get_outputs = session.get_outputs

    def run(self, names: None, feeds: dict[str, Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(names, feeds)
        known = [output.name.removesuffix("_ReduceMin").removesuffix("_ReduceMax") for output in self.get_outputs()]
        bad = {name for name, values in zip(known, outputs, strict=True) if not np.isfinite(values).all()}
        if bad:
            raise NonFiniteError(f"NaN or infinity in the activations {layers.shown(sorted(bad))}")
        return outputs
