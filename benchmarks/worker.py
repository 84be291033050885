"""A process of its own for one artifact: it does what it is asked, a line of JSON at a time, and times it.

A crash of an engine ends this process and nothing else. What libraries print to standard output goes to standard error.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from edgeclip.benchmarks import environment, stages, timing
from edgeclip.benchmarks.calls import Contender
from edgeclip.benchmarks.stages import Encoder, Material
from edgeclip.errors import EdgeClipError
from edgeclip.golden import Golden
from edgeclip.loading import load
from edgeclip.manifest import Tower
from edgeclip.model import Model
from edgeclip.parity import bounds_for, measure
from edgeclip.verify import verify

Around = Callable[[timing.Call], timing.Call]


class Server:
    """The model, and its stages as calls.

    Args:
        around: makes of each call the one that is timed.
    """

    def __init__(self, around: Around = lambda call: call) -> None:
        self._around = around
        self._calls: dict[tuple[str, int], timing.Call] = {}
        self._model: Model
        self._encoder: Encoder
        self._material: Material

    def load(self, bundle: str, images: list[str], reference: list[str] | None, **options: Any) -> dict[str, Any]:
        """Load a model; returns how long that took and what it is.

        Args:
            images: paths of the pictures.
            reference: `module:function` and a checkpoint, to be timed in the model's place.
            options: of `edgeclip.load`.
        """
        base, free = environment.resident_mb(), _free_mb(options["backend"])
        started = time.perf_counter()
        self._model = load(bundle, text_cache=False, tuned=False, **options)
        self._encoder = self._model
        if reference:
            module, _, function = reference[0].partition(":")
            started = time.perf_counter()
            self._encoder = getattr(import_module(module), function)(self._model, reference[1], options["threads"])
        loaded = time.perf_counter()
        self._material = Material.of(self._model, [Path(path) for path in images])
        towers = list(self._model.info.artifacts)
        began = time.perf_counter()
        for stage in ("image_encode", "text_encode"):
            if stages.ENCODE[stage] in towers:
                self._call(stage, 1)()
        first = time.perf_counter() - began
        gc.collect()
        info = self._model.info
        return {
            "load_ms": (loaded - started) * 1e3,
            "first_ms": first * 1e3,
            "base_rss_mb": base,
            "vram_mb": None if free is None else free - (_free_mb(options["backend"]) or 0.0),
            "engine": getattr(self._encoder, "engine", f"{info.backend} {info.engine_version}"),
            "device": info.device,
            "compute": info.compute,
        }

    def warm(self, stage: str, batch: int, least_s: float, window_s: float, most_s: float) -> timing.Warmth:
        """Call a stage until it takes equally long each time."""
        return timing.settle(self._call(stage, batch), least_s=least_s, window_s=window_s, most_s=most_s)

    def turn(self, stage: str, batch: int, discard: int, count: int) -> list[float]:
        """Seconds of some calls, after others that do not count."""
        call = self._call(stage, batch)
        for _ in range(discard):
            call()
        return [timing.elapsed(call) for _ in range(count)]

    def sustain(self, stage: str, batch: int, seconds: float) -> list[float]:
        """Seconds of calls without pauses."""
        return timing.repeat(self._call(stage, batch), seconds)

    def memory(self) -> float:
        """The most that this process had in RAM, MB."""
        return environment.peak_resident_mb()

    def parity(self) -> dict[str, Any]:
        """The golden vectors: whether they pass, and each one's cosine."""
        model, encoder = self._model, self._encoder
        golden = Golden.from_bytes(model.bundle.read(model.bundle.manifest.golden))
        found: dict[str, Any] = {"image_cosines": [], "text_cosines": []}
        failures = [f"{check.name}: {text}" for check in verify(model).checks for text in check.failures]
        for tower, run, inputs, reference in (
            ("image", encoder.encode_pixels, golden.pixels, golden.image_embeddings),
            ("text", encoder.encode_ids, golden.ids, golden.text_embeddings),
        ):
            if tower in model.info.artifacts:
                embeddings = run(inputs)
                found[f"{tower}_cosines"] = _cosines(embeddings, reference)
                if encoder is not model:
                    failures += measure(embeddings, reference).failures(bounds_for("fp32"))
        return found | {"passed": not failures, "failures": failures}

    def embed(self, tower: Tower, inputs: str, start: int, stop: int, outputs: str) -> None:
        """Write the embeddings of some rows of a `.npy` of pixels or token ids, float32 [stop - start, D]."""
        rows = np.ascontiguousarray(np.load(inputs, mmap_mode="r")[start:stop])
        encode = self._encoder.encode_pixels if tower == "image" else self._encoder.encode_ids
        np.save(outputs, encode(rows))

    def _call(self, stage: str, batch: int) -> timing.Call:
        key = stage, batch
        if key not in self._calls:
            self._calls[key] = self._around(self._made(stage, batch))
        return self._calls[key]

    def _made(self, stage: str, batch: int) -> Contender:
        if stage in stages.HOST:
            return stages.host(self._model, self._material, stage)
        return stages.encode(self._encoder, self._material, stage, batch)


def serve(server: Server, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer until there are no more requests."""
    with timing.without_garbage_collection():
        for line in requests:
            request: dict[str, Any] = msgspec.json.decode(line)
            try:
                reply = {"found": getattr(server, request.pop("do"))(**request)}
            except EdgeClipError as exc:
                reply = {"error": type(exc).__name__, "message": exc.message, "hint": exc.hint}
            except MemoryError:
                reply = {"error": "ResourceError", "message": "out of memory", "hint": ""}
            replies.write(msgspec.json.encode(reply) + b"\n")
            replies.flush()


def main(around: Around = lambda call: call) -> None:
    """Serve on the standard streams."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Server(around), sys.stdin.buffer, replies)


def _cosines(found: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> list[float]:
    one, other = (np.asarray(rows, np.float64) for rows in (found, reference))
    return [float(c) for c in (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))]


def _free_mb(backend: str) -> float | None:
    """Memory of the first GPU that nobody uses; None for backends that need none."""
    if backend != "tensorrt":
        return None
    from edgeclip.backends import cuda

    return cuda.free_bytes(0) / 1e6


if __name__ == "__main__":
    main()
