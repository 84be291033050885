"""What engines cost and bring on this GPU, one JSON line each: `python -m tests.gpu.measure FOLDER [ROUNDS]`.

Times are of `Session.run` from and to host memory, in ms: the median and the 90th percentile of interleaved rounds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgeclip
from edgeclip.backends import cuda, trt_engines
from edgeclip.bundle import Bundle
from edgeclip.manifest import Artifact
from tests.gpu.test_tensorrt import inputs_of, run

BATCHES = (1, 8, 32)
GRAPHS = {"graphs": "1", "plain": "0"}


def main(folder: str, rounds: str = "100") -> None:
    """Measure every artifact for TensorRT of every bundle in a folder."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["EDGECLIP_CACHE"] = cache
        print(json.dumps({"gpu": str(cuda.describe(0))}), flush=True)
        for path in sorted(Path(folder).glob("*.edgeclip")):
            for artifact in Bundle.open(path).manifest.artifacts:
                if artifact.target == "tensorrt":
                    print(json.dumps(measure(path, artifact, int(rounds))), flush=True)


def measure(path: Path, artifact: Artifact, rounds: int) -> dict[str, Any]:
    """Build, load from the cache, and run one artifact with CUDA graphs and without."""
    started = time.perf_counter()
    engine = trt_engines.obtain(artifact, Bundle.open(path).read(artifact.file), cuda.describe(0))
    built_s = time.perf_counter() - started
    free, started = cuda.free_bytes(0), time.perf_counter()
    models = {name: _load(path, artifact, setting) for name, setting in GRAPHS.items()}
    load_s = (time.perf_counter() - started) / len(models)
    times = _times(models, path, artifact, rounds)
    used = (free - cuda.free_bytes(0)) / len(models)
    for model in models.values():
        model.close()
    return {
        "bundle": path.name,
        "tower": artifact.tower,
        "precision": artifact.precision,
        "build_s": round(built_s, 2),
        "plan_mb": round(len(engine.plan) / 1e6, 1),
        "load_s": round(load_s, 3),
        "gpu_mb": round(used / 1e6, 1),
        **times,
    }


def _load(path: Path, artifact: Artifact, setting: str) -> edgeclip.Model:
    os.environ["EDGECLIP_CUDA_GRAPHS"] = setting
    return edgeclip.load(path, backend="tensorrt", tower=artifact.tower, precision=artifact.precision)


def _times(models: dict[str, edgeclip.Model], path: Path, artifact: Artifact, rounds: int) -> dict[str, list[float]]:
    found = {}
    for batch in BATCHES:
        inputs = inputs_of(path, artifact.tower, batch)
        taken: dict[str, list[float]] = {name: [] for name in models}
        for round_ in range(rounds + 20):
            for name, model in models.items():
                started = time.perf_counter()
                run(model, artifact.tower, inputs)
                if round_ >= 20:
                    taken[name].append((time.perf_counter() - started) * 1e3)
        for name, values in taken.items():
            found[f"{name} b{batch}"] = [round(float(v), 3) for v in np.percentile(values, (50, 90))]
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
