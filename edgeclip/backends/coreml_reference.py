"""Backend `coreml-reference`: carries out Core ML artifacts over NumPy, on any machine, to tell whether they are right.

It needs neither macOS nor coremltools, and computes each operation as its definition says, in the types that the
program states. It is no engine: it is slow, and is used only where it is named. What Core ML's own engines compute
differs in the last bits, because they fuse operations and choose the order of sums.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from edgeclip.backends import coreml_inputs, coreml_package, mil_program
from edgeclip.backends.base import Array, Embeddings, Engine, Files, Options, engine_errors, require_own_types
from edgeclip.backends.mil_executor import Executor
from edgeclip.backends.mil_program import ImageFeature
from edgeclip.cpus import available_cpus
from edgeclip.errors import ModelClosedError, TargetLoadError, TargetUnavailableError
from edgeclip.manifest import Artifact, Compute

NAME = "coreml-reference"


def devices() -> list[str]:
    """See `Backend.devices`."""
    return ["cpu"]


def computes(device: str) -> list[Compute]:
    """See `Backend.computes`: the program's own types, whatever is asked."""
    return ["f32"]


def describe(device: str) -> str:
    """See `Backend.describe`."""
    return f"a reference, in NumPy {np.__version__}; runs only where it is named"


def open(artifact: Artifact, files: Files, options: Options) -> ReferenceSession:
    """See `Backend.open`.

    Raises:
        BundlePathError: the package, or its program, refers to something outside it.
        TargetLoadError: an operation that the reference does not know, or a damaged program.
    """
    if options.device != "cpu":
        raise TargetUnavailableError(f"{NAME} has no device {options.device!r}; it has: cpu")
    require_own_types(options, NAME, "program")
    with engine_errors(artifact, "load"), coreml_package.naming(artifact):
        package = coreml_package.read(artifact.file, files)
        program = mil_program.parse(package.specification)
        coreml_package.require_own_weights(package, program)
        executor = Executor(program, package.weights)
        session = ReferenceSession(executor, artifact)
    for name in package.files:
        files.pop(f"{package.name}/{name}")
    return session


class ReferenceSession:
    """One program, ready to be carried out."""

    def __init__(self, executor: Executor, artifact: Artifact) -> None:
        self._executor: Executor | None = executor
        self._artifact = artifact
        self._width = int(artifact.output.shape[-1])
        self._input, self._feature = coreml_inputs.feature(executor.program)
        # NumPy's BLAS takes the threads that it finds; nothing here can tell it otherwise.
        self.engine = Engine(NAME, f"{version('edgeclip')} (numpy {np.__version__})", "cpu", "f32", available_cpus())

    def run(self, inputs: Array) -> Embeddings:
        """See `Session.run`."""
        executor = self._executor
        if executor is None:
            raise ModelClosedError("the session is closed")
        with engine_errors(self._artifact, "run"):
            if isinstance(self._feature, ImageFeature):
                found = [self._embed(executor, image) for image in coreml_inputs.images(inputs, self._feature)]
            else:
                pieces = coreml_inputs.rows(inputs, self._feature)
                found = [self._embed(executor, piece)[:count] for piece, count in pieces]
        return np.concatenate(found) if found else np.empty((0, self._width), np.float32)

    def close(self) -> None:
        """See `Session.close`."""
        self._executor = None

    def _embed(self, executor: Executor, piece: Array) -> Embeddings:
        (output,) = executor.run({self._input: piece}).values()
        if output.shape != (len(piece), self._width):
            stated = f"{self._artifact.output.name!r} is stated as [{len(piece)}, {self._width}]"
            raise TargetLoadError(f"{self._artifact.file}: an output of shape {list(output.shape)}, {stated}")
        return np.asarray(output, np.float32)
