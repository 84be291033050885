"""Backend `tensorrt`: runs artifacts for TensorRT on NVIDIA GPUs, with TensorRT 10.3 and later or TensorRT-RTX.

The engine is built on the device when it is first needed: see `trt_engines`. CUDA is asked for the GPU before TensorRT
is, whose objects crash the process where there is none. Execution contexts may not be shared, so every call takes one
from a pool; what they run is in `trt_runner`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from typing import Any

import numpy as np

from edgeclip.backends import cuda, trt_engines
from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors, require_own_types
from edgeclip.backends.pool import Pool
from edgeclip.backends.trt_library import complaints, logger, trt, version
from edgeclip.backends.trt_runner import Runner, Signature
from edgeclip.errors import InputShapeError, ModelClosedError, TargetLoadError, TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

CONTEXTS = 4
"""Runs at a time; further threads wait. Each takes memory on the GPU for the largest batch."""
GRAPHS_VARIABLE = "EDGECLIP_CUDA_GRAPHS"
"""0 in this environment variable turns CUDA graphs off."""

said = logging.getLogger("edgeclip.engines")


def devices() -> list[str]:
    """The GPUs, as `cuda:0`.

    Raises:
        TargetUnavailableError: there is none, and why.
    """
    return [f"cuda:{ordinal}" for ordinal in range(cuda.count())]


def computes(device: str) -> list[Compute]:
    """See `Backend.computes`: the graph's own types, whatever the device."""
    return ["f32"]


def describe(device: str) -> str:
    """See `Backend.describe`."""
    return str(cuda.describe(ordinal_of(device)))


def open(artifact: Artifact, files: Files, options: Options) -> TrtSession:
    """See `Backend.open`. Builds the engine where the cache has none, and says so in the log."""
    gpu = cuda.describe(ordinal_of(options.device))
    require_own_types(options, "tensorrt", "graph")
    onnx = files.pop(artifact.file)
    with engine_errors(artifact, "load"):
        held = trt_engines.obtain(artifact, onnx, gpu)
        try:
            return TrtSession(held.plan, artifact, gpu, options)
        except PlanError as exc:
            if not held.cached or "out of memory" in str(exc).lower():
                raise
            said.warning("the cached engine of %s is built again: %s", artifact.file, exc)
        held = trt_engines.obtain(artifact, onnx, gpu, afresh=True)
        return TrtSession(held.plan, artifact, gpu, options)


def ordinal_of(device: str) -> int:
    """The number of the GPU that `cuda` or `cuda:N` names.

    Raises:
        TargetUnavailableError: it names something else.
    """
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if match is None:
        raise TargetUnavailableError(
            f"tensorrt has no device {device!r}; it runs on NVIDIA GPUs",
            hint="device='cuda', or 'cuda:1' for the second",
        )
    return int(match[1] or 0)


class PlanError(RuntimeError):
    """The library does not load an engine."""


class TrtSession:
    """One engine, and the execution contexts that are free."""

    def __init__(self, plan: bytes | memoryview, artifact: Artifact, gpu: cuda.Gpu, options: Options) -> None:
        self._artifact = artifact
        self.engine = Engine("tensorrt", version(), f"cuda:{gpu.ordinal}", options.compute, options.threads)
        cuda.use(gpu.ordinal)
        loaded = _Loaded(plan)
        self._signature = signature = _signature(loaded.engine, artifact)
        graphs = os.environ.get(GRAPHS_VARIABLE, "1") != "0"
        self._pool: Pool[Runner] = Pool(
            lambda: loaded.runner(signature, gpu.ordinal, graphs=graphs), lambda runner: runner.close(), CONTEXTS
        )
        self._finalizer = weakref.finalize(self, _end, self._pool, loaded, os.getpid())
        with self._pool.lend():
            pass  # one context is made at once, so that a GPU too full to run is an error of loading

    def run(self, inputs: Array) -> Embeddings:
        """See `Session.run`. Batches beyond the engine's largest are run in parts.

        Raises:
            InputShapeError: rows that the engine is not built for.
        """
        if not self._finalizer.alive:
            raise ModelClosedError("this model is closed", hint="load it again")
        _check(inputs, self._signature)
        low, high = self._signature.low[0], self._signature.high[0]
        if len(inputs) == 0:
            return np.empty((0, self._signature.embed_dim), np.float32)
        with engine_errors(self._artifact, "run"), self._pool.lend() as runner:
            starts = range(0, len(inputs), high)
            return np.concatenate([_padded_run(runner, inputs[start : start + high], low) for start in starts])

    def close(self) -> None:
        """See `Session.close`."""
        self._finalizer()


class _Loaded:
    """A deserialized engine, and the runtime that it needs."""

    def __init__(self, plan: bytes | memoryview) -> None:
        self._runtime = trt.Runtime(logger)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        self._lock = threading.Lock()
        if self.engine is None:
            raise PlanError(f"TensorRT does not take the engine: {complaints() or 'no reason given'}")

    def runner(self, signature: Signature, ordinal: int, *, graphs: bool) -> Runner:
        with self._lock:
            return Runner(self.engine, signature, ordinal, graphs=graphs)

    def unload(self) -> None:
        """The engine before the runtime that made it."""
        self.engine = None
        self._runtime = None


def _end(pool: Pool[Runner], loaded: _Loaded, pid: int) -> None:
    if os.getpid() != pid:
        return  # nothing of CUDA works after a fork, freeing least of all
    pool.close()
    loaded.unload()


def _signature(engine: Any, artifact: Artifact) -> Signature:
    """The engine's input and output, which must be the artifact's.

    Raises:
        TargetLoadError: they are not.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if (inputs, outputs) != ([artifact.input.name], [artifact.output.name]):
        raise TargetLoadError(
            f"{artifact.file}: the engine has inputs {inputs} and outputs {outputs}, the manifest says "
            f"{artifact.input.name!r} and {artifact.output.name!r}"
        )
    dtypes = [_dtype(engine.get_tensor_dtype(name), artifact) for name in (*inputs, *outputs)]
    if dtypes != [np.dtype(artifact.input.dtype), np.dtype(np.float32)]:
        raise TargetLoadError(
            f"{artifact.file}: the engine goes from {dtypes[0]} to {dtypes[1]}, the manifest says from "
            f"{artifact.input.dtype} to float32"
        )
    low, _, high = (tuple(int(size) for size in dims) for dims in engine.get_tensor_profile_shape(inputs[0], 0))
    embed_dim = int(tuple(engine.get_tensor_shape(outputs[0]))[-1])
    if embed_dim < 1:
        raise TargetLoadError(f"{artifact.file}: the engine does not say how many dimensions an embedding has")
    return Signature(inputs[0], outputs[0], dtypes[0], low, high, embed_dim)


def _dtype(kind: Any, artifact: Artifact) -> np.dtype[Any]:
    known = {trt.DataType.UINT8: np.uint8, trt.DataType.INT32: np.int32, trt.DataType.FLOAT: np.float32}
    if kind not in known:
        raise TargetLoadError(
            f"{artifact.file}: the engine has a tensor of {kind}, which is none of uint8, int32, float32"
        )
    return np.dtype(known[kind])


def _check(inputs: Array, signature: Signature) -> None:
    """Everything but the batch, which is split or filled up."""
    low, high, given = signature.low[1:], signature.high[1:], inputs.shape[1:]
    fits = len(given) == len(low) and all(a <= size <= b for a, size, b in zip(low, given, high, strict=True))
    if not fits or inputs.dtype != signature.dtype:
        sizes = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True)]
        raise InputShapeError(
            f"the engine takes {signature.dtype} [B, {', '.join(sizes)}], got {inputs.dtype} {list(inputs.shape)}"
        )


def _padded_run(runner: Runner, inputs: Array, least: int) -> Embeddings:
    """Run a batch; one smaller than the engine's smallest is filled up with its last row."""
    missing = least - len(inputs)
    if missing <= 0:
        return runner.run(inputs)
    return runner.run(np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)]))[: len(inputs)]
