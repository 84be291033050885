"""Backend `coreml`: runs Core ML artifacts on macOS, on the CPU, the GPU and the Neural Engine.

Not run by us: there was no Mac to run it on. What it shares with `coreml-reference` (packages, programs, batches) is
tested on every platform, and so is the cache of compiled packages.

Core ML decides for itself where each operation runs, and silently: a program that the Neural Engine does not take runs
on the CPU. So the compute plan is asked where the operations went, `placement` says it, and a unit that was named but
got none of them is an error.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeclip.backends import coreml_compiled, coreml_inputs, coreml_package, mil_program
from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors, require_own_types
from edgeclip.backends.coreml_library import ct
from edgeclip.backends.mil_program import ImageFeature, Program
from edgeclip.cpus import available_cpus
from edgeclip.errors import ModelClosedError, TargetLoadError, TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

_UNITS = {"all": "ALL", "cpu+ane": "CPU_AND_NE", "cpu+gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
"""Device -> `coremltools.ComputeUnit`."""
_KINDS = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ane",
}
_PLANS_SINCE = (14, 4)
"""The macOS that first says where operations run. Source: developer.apple.com, MLComputePlan."""

said = logging.getLogger("edgeclip.engines")


def devices() -> list[str]:
    """Sets of compute units, as `Options.device` names them; those that lack here are left out."""
    present = {"cpu", *_present()}
    return [name for name in _UNITS if name == "all" or set(name.split("+")) <= present]


def computes(device: str) -> list[Compute]:
    """See `Backend.computes`: the program's own types; the Neural Engine takes fp16 alone."""
    return ["f32"]


def describe(device: str) -> str:
    """See `Backend.describe`."""
    return f"{platform.machine()}, macOS {platform.mac_ver()[0]}, with {', '.join(sorted({'cpu', *_present()}))}"


def open(artifact: Artifact, files: Files, options: Options) -> CoreMlSession:
    """See `Backend.open`.

    Raises:
        BundlePathError: the package, or its program, refers to something outside it.
    """
    _require_known(options)
    units = ct.ComputeUnit[_UNITS[options.device]]
    with engine_errors(artifact, "load"), coreml_package.naming(artifact):
        package = coreml_package.read(artifact.file, files)
        program = mil_program.parse(package.specification)
        coreml_package.require_own_weights(package, program)
        compiled = coreml_compiled.compiled(package, (_version(), platform.machine()), _compile)
        model = ct.models.CompiledMLModel(str(compiled.path), units)
        placement = _placement(compiled.path, units)
    for name in package.files:
        files.pop(f"{package.name}/{name}")
    said.info("%s: operations on %s", artifact.file, placement or "units that this macOS does not name")
    _require_used(artifact, options.device, placement)
    return CoreMlSession(model, compiled, program, artifact, options.device, placement)


class CoreMlSession:
    """One compiled model. Core ML's models are not made for several threads at once, so calls take turns."""

    def __init__(
        self,
        model: Any,
        compiled: coreml_compiled.Compiled,
        program: Program,
        artifact: Artifact,
        device: str,
        placement: dict[str, int],
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._artifact = artifact
        self._input, self._feature = coreml_inputs.feature(program)
        (self._output,) = program.outputs
        self._turn = threading.Lock()
        self.placement = placement
        """Operations by the unit that Core ML prefers for them: `ane`, `gpu`, `cpu`. Empty before macOS 14.4."""
        self.engine = Engine("coreml", _version(), device, "f32", available_cpus())

    def run(self, inputs: Array) -> Embeddings:
        """See `Session.run`."""
        with self._turn, engine_errors(self._artifact, "run"):
            if self._model is None:
                raise ModelClosedError("the session is closed")
            if isinstance(self._feature, ImageFeature):
                coreml_inputs.require_size(inputs, self._feature)
                found = [self._predict(Image.fromarray(picture)) for picture in inputs]
            else:
                found = [self._predict(piece)[:count] for piece, count in coreml_inputs.rows(inputs, self._feature)]
        width = int(self._artifact.output.shape[-1])
        return np.concatenate(found) if found else np.empty((0, width), np.float32)

    def close(self) -> None:
        """See `Session.close`."""
        with self._turn:
            self._model = None
            self._compiled.close()

    def _predict(self, value: Any) -> Embeddings:
        return np.asarray(self._model.predict({self._input: value})[self._output], np.float32)


def _require_known(options: Options) -> None:
    if options.device not in devices():
        raise TargetUnavailableError(f"coreml has no device {options.device!r} here; it has: {', '.join(devices())}")
    require_own_types(options, "coreml", "program")


def _require_used(artifact: Artifact, device: str, placement: dict[str, int]) -> None:
    """`cpu+ane` and `cpu+gpu` ask for a unit beside the CPU; `all` leaves it to Core ML."""
    wanted = device.partition("+")[2]
    if wanted and placement and not placement.get(wanted):
        raise TargetUnavailableError(
            f"{artifact.file}: Core ML runs none of it on {wanted}, but {placement}",
            hint="the Neural Engine takes fp16 artifacts only; device='all' lets Core ML choose",
        )


def _compile(package: Path, target: Path) -> None:
    ct.models.utils.compile_model(str(package), str(target))


def _placement(path: Path, units: Any) -> dict[str, int]:
    """How many operations each compute unit is preferred for; constants count for none."""
    if _macos() < _PLANS_SINCE:
        return {}
    plan = ct.models.compute_plan.MLComputePlan.load_from_path(str(path), units)
    program = plan.model_structure.program
    if program is None:
        raise TargetLoadError("Core ML does not take it for an ML program")
    usages = [
        plan.get_compute_device_usage_for_mlprogram_operation(operation)
        for operation in program.functions[mil_program.MAIN].block.operations
    ]
    return dict(Counter(_kind(usage.preferred_compute_device) for usage in usages if usage is not None))


def _present() -> set[str]:
    """Kinds of compute unit that this Mac has; all of them where macOS does not say."""
    if _macos() < _PLANS_SINCE:
        return set(_KINDS.values())
    return {_kind(device) for device in ct.models.compute_device.MLComputeDevice.get_all_compute_devices()}


def _kind(device: Any) -> str:
    return _KINDS.get(type(device).__name__, "unknown")


def _macos() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2])


def _version() -> str:
    return f"{ct.__version__} (macOS {platform.mac_ver()[0]})"
