"""Backend `openvino`: runs OpenVINO IR artifacts.

Three facts about the engine shape this file. A compiled model shared between threads returns wrong results, so every
call takes an infer request of its own from a pool. `CompiledModel.__call__` may write into the caller's array, so inputs
are never shared. On CPUs with bf16 an fp32 model runs in bf16 unless told otherwise, so the arithmetic is always set, and
read back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import openvino as ov

from edgeclip import cache as disk
from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors
from edgeclip.errors import TargetUnavailableError
from edgeclip.manifest import Artifact


@cache
def _core() -> Any:
    return ov.Core()


def devices() -> list[str]:
    """Devices that OpenVINO sees, in lower case, accelerators first."""
    found = [str(device).lower() for device in _core().available_devices]
    return sorted(found, key=lambda device: device == "cpu")


def open(artifact: Artifact, files: Files, options: Options) -> OvSession:
    """See `Backend.open`."""
    if options.device not in devices():
        raise TargetUnavailableError(f"openvino has no device {options.device!r} here; it has: {', '.join(devices())}")
    with engine_errors(artifact, "load"):
        compiled = _compile(artifact, files, options)
    return OvSession(compiled, artifact, options)


class OvSession:
    """One compiled IR, and the infer requests that are free."""

    def __init__(self, compiled: Any, artifact: Artifact, options: Options) -> None:
        self._compiled = compiled
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


def _compile(artifact: Artifact, files: Files, options: Options) -> Any:
    """Compile, or take the compiled form from the cache where compiling is the slower of the two.

    On CPU compiling ViT-B/32 takes 0.25 s and importing its compiled form as long, so that only accelerators use the cache.
    """
    if options.device == "cpu":
        return _core().compile_model(_read(artifact, files), "CPU", _properties(options))
    name = f"openvino/{_fingerprint(artifact, files, options)}.blob"
    blob = disk.read(name)
    if blob is not None:
        return _core().import_model(blob, options.device.upper(), _properties(options))
    compiled = _core().compile_model(_read(artifact, files), options.device.upper(), _properties(options))
    disk.write(name, compiled.export_model().getvalue())
    return compiled


def _read(artifact: Artifact, files: Files) -> Any:
    """The model over the verified bytes. Its constants point into the weights' buffer, which is not copied."""
    weights = files.pop(artifact.file.removesuffix(".xml") + ".bin")
    writable = weights if isinstance(weights, bytearray) else bytearray(weights)
    tensor = ov.Tensor(np.frombuffer(writable, np.uint8), shared_memory=True)
    return _core().read_model(bytes(files.pop(artifact.file)).decode("utf-8"), tensor)


def _properties(options: Options) -> dict[str, Any]:
    common = {"INFERENCE_PRECISION_HINT": options.compute, "PERFORMANCE_HINT": "LATENCY"}
    return common | ({"INFERENCE_NUM_THREADS": options.threads} if options.device == "cpu" else {})


def _fingerprint(artifact: Artifact, files: Files, options: Options) -> str:
    device = _core().get_property(options.device.upper(), "FULL_DEVICE_NAME")
    digests = [disk.content_digest(files[name]) for name in artifact.files]
    return disk.fingerprint(*digests, _version(), device, options.compute)


def _compute_of(compiled: Any) -> str:
    """The arithmetic that the engine reports, as `f32`, `bf16` or `f16`."""
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def _version() -> str:
    return str(ov.__version__).split("-")[0]
