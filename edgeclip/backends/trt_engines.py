"""TensorRT engines on disk: built once per graph, library, GPU and driver, then kept in the user's cache.

An engine is native code. So the only ones that are ever loaded are those that this user built here: the cache checks
whose file it is, that nobody else can write to it, and its digest; and the entry itself says what it was built from.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from edgeclip import __version__, cache
from edgeclip.backends.cuda import Gpu
from edgeclip.backends.trt_build import LIMIT_S, build_plan
from edgeclip.backends.trt_library import flavour, version
from edgeclip.buffers import Buffer
from edgeclip.errors import TargetLoadError
from edgeclip.manifest import Artifact, Precision, Profile
from edgeclip.powermode import power_mode

REVISION = 1
"""Of how engines are built here; a change makes all of them anew."""
HEARTBEAT_S = 30.0
_HEAD_LIMIT = 1 << 16

said = logging.getLogger("edgeclip.engines")


@dataclass(frozen=True)
class Recipe:
    """All that decides an engine: where anything differs, it is built anew."""

    onnx_sha256: str
    precision: Precision
    profile: dict[str, Any]
    flavour: str
    library: str
    gpu: str
    compute_capability: str
    driver: str
    revision: int = REVISION

    @property
    def entry(self) -> str:
        """Its name in the cache."""
        return f"tensorrt/{cache.fingerprint(json.dumps(asdict(self), sort_keys=True))}.engine"


@dataclass(frozen=True)
class Engine:
    """A plan, and how it came about."""

    plan: bytes | memoryview
    seconds: float
    """That building took, when it was built."""
    cached: bool
    """Whether it was there already."""
    power_mode: str
    """Of a Jetson, when it was built: what is fastest at one power need not be at another."""
    device_profile: str
    """The name that the user gave the device and its set-up."""


def recipe(artifact: Artifact, onnx: Buffer, gpu: Gpu) -> Recipe:
    """What an artifact's engine on a GPU is built from."""
    return Recipe(
        onnx_sha256=cache.content_digest(onnx),
        precision=artifact.precision,
        profile=msgspec.to_builtins(profile_of(artifact)),
        flavour=flavour(),
        library=version(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
    )


def profile_of(artifact: Artifact) -> Profile:
    """The sizes that an artifact's engine is built for.

    Raises:
        TargetLoadError: the artifact does not say.
    """
    if artifact.profile is None:
        raise TargetLoadError(
            f"{artifact.file}: the manifest has no profile of the sizes to build for",
            hint="export it again with `edgeclip export --target tensorrt`",
        )
    return artifact.profile


def obtain(
    artifact: Artifact,
    onnx: Buffer,
    gpu: Gpu,
    *,
    afresh: bool = False,
    device_profile: str = "",
    limit_s: float = LIMIT_S,
    tick: Callable[[float], None] | None = None,
) -> Engine:
    """The artifact's engine: from the cache, or built and put there.

    Args:
        onnx: the verified graph.
        afresh: build, whatever the cache holds.
        device_profile: a name to keep beside an engine that is built.
        limit_s: seconds after which a build is given up.
        tick: called about once a second while building; None logs that a build began, goes on, and ended.

    Raises:
        TargetLoadError: the engine cannot be built.
        ResourceError: out of memory.
    """
    wanted = recipe(artifact, onnx, gpu)
    if not afresh and (held := read(wanted)):
        return held
    where = f"the engine of {artifact.file} for {gpu.name}"
    if tick is None:
        said.warning("building %s; this can take minutes, once", where)
    started = time.monotonic()
    plan = build_plan(
        onnx,
        profile_of(artifact),
        precision=artifact.precision,
        name=artifact.file,
        device=gpu.ordinal,
        limit_s=limit_s,
        tick=tick or _Heartbeat(where),
    )
    built = Engine(plan, time.monotonic() - started, False, power_mode(), device_profile)
    if tick is None:
        said.warning("built %s in %.0f s, %.0f MB", where, built.seconds, len(plan) / 1e6)
    write(wanted, built)
    return built


def read(wanted: Recipe) -> Engine | None:
    """The engine that was built by a recipe, or None. Why an entry is not used is logged."""
    entry = cache.load(wanted.entry)
    if entry is None:
        return None
    head, newline, _ = bytes(entry[:_HEAD_LIMIT]).partition(b"\n")
    try:
        facts = json.loads(head)
        if not newline or facts.pop("recipe") != asdict(wanted):
            raise ValueError("it was built from something else")
        return Engine(plan=entry[len(head) + 1 :], cached=True, **facts["build"])
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        said.warning("%s in the cache is not used: %s", wanted.entry, exc)
        return None


def write(made: Recipe, engine: Engine) -> None:
    """Keep an engine, with what it was built from."""
    build = {name: getattr(engine, name) for name in ("seconds", "power_mode", "device_profile")}
    head = {"recipe": asdict(made), "build": build, "edgeclip": __version__}
    cache.write(made.entry, json.dumps(head).encode() + b"\n", engine.plan)


class _Heartbeat:
    """Says now and then that a build goes on."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._next_s = HEARTBEAT_S

    def __call__(self, passed_s: float) -> None:
        if passed_s >= self._next_s:
            said.warning("still building %s, %.0f s", self._where, passed_s)
            self._next_s += HEARTBEAT_S
