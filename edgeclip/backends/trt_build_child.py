"""The process that builds an engine: ONNX on standard input, the plan on standard output.

TensorRT's builder can crash and can hang; here it takes only this process with it. Standard output is a line of JSON,
`{"error": null}` and the plan after it, or `{"error": "what happened"}`. The library's own chatter goes to standard
error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

PARENT_POLL_S = 1.0
Sizes = tuple[int, int, int]
"""min, opt, max."""


@dataclass(frozen=True)
class Job:
    """What to build."""

    batch: Sizes
    context: Sizes | None
    """Token ids of a row; None where no axis but the batch is dynamic."""
    tf32: bool
    """Whether products of float32 may be computed in TF32, whose mantissa has 10 bits."""
    device: int | None
    """The GPU to build for; None for a flavour that builds without one."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        read = json.loads(text)
        context = tuple(read.pop("context") or ()) or None
        return cls(batch=tuple(read.pop("batch")), context=context, **read)


class BuildError(Exception):
    """The library refused; the text says why."""


def main(argument: str) -> None:
    """Carry out the job that the argument describes."""
    results = _claim_stdout()
    _end_with_parent()
    onnx = sys.stdin.buffer.read()
    try:
        plan = build(Job.from_json(argument), onnx)
    except Exception as exc:
        text = str(exc) if isinstance(exc, BuildError) else f"{type(exc).__name__}: {exc}"
        results.write(json.dumps({"error": text}).encode() + b"\n")
    else:
        results.write(b'{"error": null}\n')
        results.write(plan)
    results.flush()
    os._exit(0)  # what the library does while it is unloaded must not change what it has built


def build(job: Job, onnx: bytes) -> Any:
    """Parse and build. Returns the plan, something with the buffer protocol.

    Raises:
        BuildError: naming the nodes that are not supported, or with what the builder said.
    """
    from edgeclip.backends.trt_library import flavour, logger, trt

    if job.device is not None or flavour() == "tensorrt":
        from edgeclip.backends import cuda

        cuda.use(job.device or 0)  # without a GPU the full library hands out objects that crash when they are used
    builder = _made(trt.Builder(logger), "a builder")
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(builder.create_network(strongly_typed), "a network")
    parser = trt.OnnxParser(network, logger)  # owns the weights: it must outlive the build
    if not parser.parse(onnx):
        raise BuildError(_unsupported(builder, strongly_typed, onnx) or _errors(parser) or _said("cannot be parsed"))
    config = _made(builder.create_builder_config(), "a configuration")
    _configure(config, job)
    _add_profile(builder, network, config, job)
    return _made(builder.build_serialized_network(network, config), "an engine")


def _configure(config: Any, job: Job) -> None:
    from edgeclip.backends.trt_library import trt

    if not job.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # RTX: without it, no CUDA graph can be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job.device is not None and hasattr(trt, "ComputeCapability") and _has_target(job.device):
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
            raise BuildError(_said("cannot build for this GPU"))


def _has_target(device: int) -> bool:
    """Whether RTX can build for just this kind of GPU; what it builds otherwise is for all that came after Turing."""
    from edgeclip.backends import cuda
    from edgeclip.backends.trt_library import trt

    target = f"SM{cuda.describe(device).compute_capability.replace('.', '')}"
    return hasattr(getattr(trt, "ComputeCapability", None), target)


def _add_profile(builder: Any, network: Any, config: Any, job: Job) -> None:
    """Give each dynamic axis its sizes: the first is the batch, the second the context."""
    if (network.num_inputs, network.num_outputs) != (1, 1):
        raise BuildError(f"{network.num_inputs} inputs and {network.num_outputs} outputs where there must be one each")
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    sizes = {0: job.batch} | ({1: job.context} if job.context else {})
    unknown = [axis for axis, size in enumerate(shape) if size == -1 and axis not in sizes]
    if unknown:
        raise BuildError(
            f"input {tensor.name!r} of shape {shape}: the profile does not say how large axis {unknown[0]} is"
        )
    profile = _made(builder.create_optimization_profile(), "a profile")
    kinds = ([sizes[axis][kind] if size == -1 else size for axis, size in enumerate(shape)] for kind in range(3))
    profile.set_shape(tensor.name, *(tuple(dims) for dims in kinds))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(_said("does not take the profile"))


def _made(thing: Any, what: str) -> Any:
    """The library says "no" by returning None."""
    if thing is None:
        raise BuildError(_said(f"did not give {what}"))
    return thing


def _said(what: str) -> str:
    from edgeclip.backends.trt_library import complaints

    return f"{what}: {complaints() or 'no reason given'}"


def _unsupported(builder: Any, flags: int, onnx: bytes) -> str:
    """Every node that the library has no support for, each with its reason."""
    from edgeclip.backends.trt_library import logger, trt

    network = _made(builder.create_network(flags), "a network")  # must outlive the parser, which does not hold it
    parser = trt.OnnxParser(network, logger)
    return "" if parser.supports_model_v2(onnx) else _errors(parser)


def _errors(parser: Any) -> str:
    return "; ".join(dict.fromkeys(_error(parser.get_error(i)) for i in range(parser.num_errors)))


def _error(error: Any) -> str:
    kind = str(error.code()).rpartition(".")[2]
    where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{where}{kind}: {' '.join(error.desc().split())}"


def _claim_stdout() -> BinaryIO:
    """Standard output for us alone; whoever else writes there writes to standard error."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return results


def _end_with_parent() -> None:
    """Builds take minutes: one that nobody waits for any more ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="edgeclip-watch", daemon=True).start()
