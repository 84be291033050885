"""Building a TensorRT engine, in a process of its own with a time limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgeclip.backends.memfile import as_path
from edgeclip.backends.trt_build_child import Job
from edgeclip.buffers import Buffer
from edgeclip.errors import ResourceError, TargetLoadError
from edgeclip.manifest import Axis, Precision, Profile

LIMIT_S = 3600.0
"""Longest build. A large tower takes tens of minutes on the smallest devices."""
POLL_S = 1.0
_LONGEST_TEXT = 600

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgeclip.backends.trt_build_child import main; main(sys.argv[2])"
)
CHILD = (sys.executable, "-I", "-c", _START)
"""Isolated, so that no file in the current directory is imported; it sees the modules that we see."""


def build_plan(
    onnx: Buffer,
    profile: Profile,
    *,
    precision: Precision,
    name: str = "model.onnx",
    device: int | None = None,
    limit_s: float = LIMIT_S,
    tick: Callable[[float], None] | None = None,
    command: Sequence[str] = CHILD,
) -> bytes:
    """Build an engine from a strongly typed ONNX graph with one input and one output.

    Args:
        profile: the sizes of the input's dynamic axes.
        precision: of the artifact. TF32 is allowed but for fp32.
        name: what errors call the graph.
        device: the GPU to build for; None builds without one, which TensorRT-RTX alone can.
        limit_s: seconds after which the build is given up.
        tick: called about once a second with the seconds since the start.
        command: the builder; its arguments are the search path for modules, and the job.

    Raises:
        TargetLoadError: the graph is not supported, or the builder refused, crashed or took too long.
        ResourceError: out of memory.
    """
    job = Job(_sizes(profile.batch), _sizes(profile.context) if profile.context else None, precision != "fp32", device)
    arguments = [*command, json.dumps(sys.path), job.to_json()]
    pipe = subprocess.PIPE
    with (
        as_path(onnx) as path,
        Path(path).open("rb") as graph,
        subprocess.Popen(arguments, stdin=graph, stdout=pipe, stderr=pipe) as process,
    ):
        try:
            answer, chatter = _communicate(process, name, limit_s, tick)
        finally:
            process.kill()
    return _plan(answer, chatter, process.returncode, name)


def _communicate(
    process: subprocess.Popen[bytes], name: str, limit_s: float, tick: Callable[[float], None] | None
) -> tuple[bytes, bytes]:
    """Collect what the builder says until it ends.

    Its input is a file and no pipe: after a first time-out, `Popen.communicate` writes no more of its input.
    """
    started = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=POLL_S)
        passed = time.monotonic() - started
        if passed > limit_s:
            raise TargetLoadError(
                f"{name}: TensorRT did not finish building within {limit_s:.0f} s; it was ended",
                hint="allow more time with `edgeclip build --time-limit`, or a smaller --max-batch at export",
            )
        if tick is not None:
            tick(passed)


def _plan(answer: bytes, chatter: bytes, code: int, name: str) -> bytes:
    """The plan out of the builder's answer, or the error that it means."""
    head, newline, plan = answer.partition(b"\n")
    if code != 0 or not newline:
        raise TargetLoadError(
            f"{name}: the TensorRT builder {_death(code)}{_last_line(chatter)}",
            hint="export with an opset of 17 to 20, try another precision, or another version of TensorRT",
        )
    error = json.loads(head)["error"]
    if error is None and plan:
        return plan
    text = f"{name}: TensorRT cannot build it: {error or 'the plan is empty'}"[:_LONGEST_TEXT]
    if "out of memory" in text.lower() or "OutOfMemory" in text or "MemoryError" in text:
        raise ResourceError(text, hint="end other programs, or export with a smaller --max-batch")
    raise TargetLoadError(text, hint="`edgeclip export --target tensorrt` writes graphs that it supports")


def _death(code: int) -> str:
    if code >= 0:
        return f"ended without an engine (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def _last_line(chatter: bytes) -> str:
    lines = chatter.decode(errors="replace").strip().splitlines()
    return f": {' '.join(lines[-1].split())[:300]}" if lines else ""


def _sizes(axis: Axis) -> tuple[int, int, int]:
    return axis.min, axis.opt, axis.max
