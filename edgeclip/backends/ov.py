"""Backend `openvino`: runs OpenVINO IR artifacts, and ONNX ones.

Three facts about the engine shape this file. A compiled model shared between threads returns wrong results, so every
call takes an infer request of its own from a pool. `CompiledModel.__call__` may write into the caller's array, so
inputs are never shared. On CPUs with bf16 an fp32 model runs in bf16 unless told otherwise, so the arithmetic is
always set, and read back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from edgeclip import cache as disk
from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors
from edgeclip.backends.ov_library import ov
from edgeclip.buffers import Writable
from edgeclip.errors import TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

_CAPABILITIES: dict[Compute, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


COMPILES_FAST = {"cpu"}
"""Devices whose compiled form is not worth keeping."""


@cache
def _core() -> Any:
    return ov.Core()


def devices() -> list[str]:
    """Devices that OpenVINO sees, in lower case, accelerators first."""
    found = [str(device).lower() for device in _core().available_devices]
    return sorted(found, key=lambda device: device == "cpu")


def computes(device: str) -> list[Compute]:
    """See `Backend.computes`."""
    able = _core().get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    return [name for name, capability in _CAPABILITIES.items() if capability in able]


def describe(device: str) -> str:
    """See `Backend.describe`."""
    return str(_core().get_property(device.upper(), "FULL_DEVICE_NAME"))


def open(artifact: Artifact, files: Files, options: Options) -> OvSession:
    """See `Backend.open`."""
    if options.device not in devices():
        raise TargetUnavailableError(f"openvino has no device {options.device!r} here; it has: {', '.join(devices())}")
    with engine_errors(artifact, "load"):
        weights = _weights(artifact, files)
        compiled = _compile(artifact, files, weights, options)
    return OvSession(compiled, weights, artifact, options)


class OvSession:
    """One compiled IR, and the infer requests that are free."""

    def __init__(self, compiled: Any, weights: Writable, artifact: Artifact, options: Options) -> None:
        self._compiled = compiled
        self._weights = weights  # the engine's constants point into it; it must live as long as the engine
        self._artifact = artifact
        self._free: list[Any] = []
        used = _compute_of(compiled)
        if used != options.compute:
            raise TargetUnavailableError(
                f"openvino computes in {used} on {options.device}, not in {options.compute}",
                hint=f"compute={used!r}" if used in ("f32", "bf16", "f16") else "choose another device",
            )
        self.engine = Engine("openvino", _version(), options.device, options.compute, options.threads)

    def run(self, inputs: Array) -> Embeddings:
        """See `Session.run`."""
        with engine_errors(self._artifact, "run"):
            try:
                request = self._free.pop()  # list.pop and list.append are atomic
            except IndexError:
                request = self._compiled.create_infer_request()
            result = request.infer({0: inputs}, share_inputs=False, share_outputs=False)[0]
            self._free.append(request)
        return np.asarray(result, np.float32)

    def close(self) -> None:
        """See `Session.close`."""
        self._free.clear()
        self._compiled = None


def _weights(artifact: Artifact, files: Files) -> Writable:
    """What lies beside the graph; nothing where it is ONNX, which has its weights inside."""
    if artifact.target == "onnx":
        return bytearray()
    data = files.pop(artifact.file.removesuffix(".xml") + ".bin")
    return bytearray(data) if isinstance(data, bytes) else data


def _compile(artifact: Artifact, files: Files, weights: Writable, options: Options) -> Any:
    """Compile, or take the compiled form from the cache where compiling is the slower of the two.

    On CPU, compiling ViT-B/32 takes 0.25 s and importing its compiled form longer: only accelerators use the cache.
    """
    graph = bytes(files.pop(artifact.file))
    if options.device in COMPILES_FAST:
        return _core().compile_model(_read(graph, weights), options.device.upper(), _properties(options))
    name = f"openvino/{_fingerprint(graph, weights, options)}.blob"
    blob = disk.read(name)
    if blob is not None:
        return _core().import_model(blob, options.device.upper(), _properties(options))
    compiled = _core().compile_model(_read(graph, weights), options.device.upper(), _properties(options))
    disk.write(name, compiled.export_model().getvalue())
    return compiled


def _read(graph: bytes, weights: Writable) -> Any:
    """The model over the verified bytes. Its constants point into `weights`, which are not copied."""
    if not weights:
        return _core().read_model(graph, b"")
    return _core().read_model(graph.decode("utf-8"), ov.Tensor(np.frombuffer(weights, np.uint8), shared_memory=True))


def _properties(options: Options) -> dict[str, Any]:
    common = {"INFERENCE_PRECISION_HINT": options.compute, "PERFORMANCE_HINT": "LATENCY"}
    return common | ({"INFERENCE_NUM_THREADS": options.threads} if options.device == "cpu" else {})


def _fingerprint(graph: bytes, weights: Writable, options: Options) -> str:
    device = _core().get_property(options.device.upper(), "FULL_DEVICE_NAME")
    return disk.fingerprint(
        disk.content_digest(graph), disk.content_digest(weights), _version(), device, options.device, options.compute
    )


def _compute_of(compiled: Any) -> str:
    """The arithmetic that the engine reports, as `f32`, `bf16` or `f16`."""
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def _version() -> str:
    return str(ov.__version__).split("-")[0]
