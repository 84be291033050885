"""One execution context of an engine: its buffers, its stream and its CUDA graphs, for one thread at a time.

A CUDA graph replays a run's copies and kernels with one call. It holds shapes and addresses, so there is one for each
shape, and the buffers stay where they are. A shape is recorded when it is seen for the second time: the run that
precedes the recording is the warm-up that TensorRT asks for, and shapes that come once cost nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime

from edgeclip.backends.base import Array, Embeddings
from edgeclip.backends.cuda import check
from edgeclip.backends.mirror import Mirror
from edgeclip.backends.trt_library import complaints

GRAPHS = 16
"""Shapes that a context remembers; the one that was not used for longest makes room."""

Shape = tuple[int, ...]
said = logging.getLogger("edgeclip.engines")


@dataclass(frozen=True)
class Signature:
    """The engine's input and output."""

    input: str
    output: str
    dtype: np.dtype[Any]
    """Of the input; the output is float32."""
    low: Shape
    high: Shape
    """The smallest and the largest input."""
    embed_dim: int


class EngineError(RuntimeError):
    """TensorRT refused a call."""


class Runner:
    """Runs batches that lie within the engine's profile."""

    def __init__(self, engine: Any, signature: Signature, ordinal: int, *, graphs: bool) -> None:
        self._signature = signature
        self._ordinal = ordinal
        self._recording = graphs
        self._graphs: OrderedDict[Shape, Any] = OrderedDict()  # a shape that was seen once has None
        self._context: Any = None
        self._stream: Any = None
        self._input: Mirror | None = None
        self._output: Mirror | None = None
        try:
            self._prepare(engine)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Array) -> Embeddings:
        """Embed a batch, [B, …] of the signature's dtype. Returns [B, D] float32, owned by the caller."""
        assert self._input is not None and self._output is not None
        check(runtime.cudaSetDevice(self._ordinal))
        np.copyto(self._input.host(inputs.shape), inputs)
        self._launch(inputs.shape)
        return self._output.host(self._embeds(inputs.shape)).copy()

    def close(self) -> None:
        """Give everything back that lies on the GPU. Never raises; a second call does nothing."""
        runtime.cudaSetDevice(self._ordinal)
        for graph in self._graphs.values():
            _destroy(graph)
        self._graphs.clear()
        self._context = None
        for mirror in (self._input, self._output):
            if mirror is not None:
                mirror.free()
        self._input = self._output = None
        if self._stream is not None:
            runtime.cudaStreamDestroy(self._stream)
            self._stream = None

    def _prepare(self, engine: Any) -> None:
        s = self._signature
        check(runtime.cudaSetDevice(self._ordinal))
        self._stream = check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"no execution context: {complaints() or 'no reason given'}")
        self._input = Mirror(s.high, s.dtype)
        self._output = Mirror(self._embeds(s.high), np.dtype(np.float32))
        for name, mirror in ((s.input, self._input), (s.output, self._output)):
            _agreed(self._context.set_tensor_address(name, mirror.device), f"the address of {name!r}")

    def _launch(self, shape: Shape) -> None:
        """Run what lies in the input's host memory; the result lies in the output's afterwards."""
        graph = self._graphs.get(shape)
        if graph is not None:
            check(runtime.cudaGraphLaunch(graph, self._stream))
        else:
            _agreed(self._context.set_input_shape(self._signature.input, shape), f"the shape {shape}")
            self._enqueue(shape)
        check(runtime.cudaStreamSynchronize(self._stream))
        if self._recording:
            self._remember(shape, graph)

    def _enqueue(self, shape: Shape) -> None:
        """Copy, compute, copy back, in the stream's order."""
        assert self._input is not None and self._output is not None
        self._input.upload(shape, self._stream)
        _agreed(self._context.execute_async_v3(int(self._stream)), f"a run of shape {shape}")
        self._output.download(self._embeds(shape), self._stream)

    def _remember(self, shape: Shape, graph: Any) -> None:
        """After a run: keep its graph, record one if the shape was seen before, or note that it was seen."""
        if graph is None and shape in self._graphs:
            graph = self._record(shape)
        self._graphs[shape] = graph
        self._graphs.move_to_end(shape)
        while len(self._graphs) > GRAPHS:
            _destroy(self._graphs.popitem(last=False)[1])

    def _record(self, shape: Shape) -> Any:
        """The graph of a run of the shape that the context has now; None where the engine cannot be recorded."""
        try:
            graph = self._capture(shape)
            try:
                return check(runtime.cudaGraphInstantiate(graph, 0))
            finally:
                runtime.cudaGraphDestroy(graph)
        except RuntimeError as exc:
            self._recording = False
            said.warning("runs of %r are not recorded as CUDA graphs: %s", self._signature.input, exc)
            return None

    def _capture(self, shape: Shape) -> Any:
        capturable = getattr(self._context, "is_stream_capturable", None)  # of RTX alone
        if capturable is not None and not capturable(int(self._stream)):
            raise EngineError("the engine says that it cannot be captured")
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue(shape)
        except BaseException:
            runtime.cudaStreamEndCapture(self._stream)
            raise
        return check(runtime.cudaStreamEndCapture(self._stream))

    def _embeds(self, shape: Shape) -> Shape:
        return (shape[0], self._signature.embed_dim)


def _agreed(answer: bool, what: str) -> None:
    if not answer:
        raise EngineError(f"TensorRT refuses {what}: {complaints() or 'no reason given'}")


def _destroy(graph: Any) -> None:
    if graph is not None:
        runtime.cudaGraphExecDestroy(graph)
