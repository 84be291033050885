"""Backend `onnxruntime`: runs ONNX artifacts.

A session is shared by all threads: `Run` is thread-safe. The library's two silent fallbacks, from a provider that is
missing and from a node that a provider cannot run, are both turned into errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors, require_own_types
from edgeclip.backends.memfile import as_path
from edgeclip.errors import TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONLY_ERRORS = 3
_NO_FALLBACK = {"session.disable_cpu_ep_fallback": "1"}
_STOP_WAITING = {"session.force_spinning_stop": "1"}
"""Threads wait for work by spinning; with this they stop when a run ends, and leave their CPUs to the next decoding."""


def devices() -> list[str]:
    """Devices that this build of ONNX Runtime has a provider for."""
    available = set(ort.get_available_providers())
    return [device for device in ("cuda", "cpu") if _PROVIDERS[device] in available]


def computes(device: str) -> list[Compute]:
    """See `Backend.computes`: the graph's own types, whatever the device."""
    return ["f32"]


def describe(device: str) -> str:
    """See `Backend.describe`."""
    return ""


def open(artifact: Artifact, files: Files, options: Options) -> OrtSession:
    """See `Backend.open`."""
    provider = _provider(options)
    with engine_errors(artifact, "load"), as_path(files.pop(artifact.file)) as path:
        session = ort.InferenceSession(path, _session_options(options), providers=[provider])
    if session.get_providers()[0] != provider:
        raise TargetUnavailableError(f"onnxruntime runs on {session.get_providers()[0]}, not on {provider}")
    return OrtSession(session, artifact, options)


class OrtSession:
    """One ONNX graph in ONNX Runtime."""

    def __init__(self, session: Any, artifact: Artifact, options: Options) -> None:
        self._session = session
        self._artifact = artifact
        self.engine = Engine("onnxruntime", ort.__version__, options.device, "f32", options.threads)

    def run(self, inputs: Array) -> Embeddings:
        """See `Session.run`."""
        with engine_errors(self._artifact, "run"):
            outputs = self._session.run([self._artifact.output.name], {self._artifact.input.name: inputs})
        return np.asarray(outputs[0], np.float32)

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


def _provider(options: Options) -> str:
    if options.device not in devices():
        raise TargetUnavailableError(
            f"onnxruntime has no device {options.device!r} here; it has: {', '.join(devices())}",
            hint="pip install onnxruntime-gpu" if options.device == "cuda" else "choose one of these",
        )
    require_own_types(options, "onnxruntime", "graph")
    return _PROVIDERS[options.device]


def _session_options(options: Options) -> Any:
    config = ort.SessionOptions()
    config.intra_op_num_threads = options.threads
    config.inter_op_num_threads = 1
    config.log_severity_level = _ONLY_ERRORS
    entries = _STOP_WAITING if options.device == "cpu" else _STOP_WAITING | _NO_FALLBACK
    for name, value in entries.items():
        config.add_session_config_entry(name, value)
    return config
