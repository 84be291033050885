"""Budgets that measure next to nothing, for tests of what is made of measurements; and records that were never measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclip.benchmarks.record import (
    SCHEMA,
    Accuracy,
    Comparison,
    Config,
    Control,
    Described,
    Environment,
    Inputs,
    Memory,
    Parity,
    Power,
    Record,
    Result,
    Stage,
    Throughput,
    Warmup,
)
from edgeclip.benchmarks.timing import Estimate

TINY = """
from dataclasses import replace
from edgeclip.benchmarks import suite
suite.QUICK = replace(
    suite.QUICK, seconds=0.02, queries=4, host_s=0.01, offline_s=0.01, batches=(2,), processes=1, sustained_s=0.2,
    warmup_s=0.0, window_s=0.005, most_warmup_s=0.01,
)
"""
"""Code for `cli.patched`."""


def stage(name: str = "image_encode", ms: float = 10.0, batch: int = 1, **changes: Any) -> Stage:
    """A stage whose calls took from 0.9 to 1.2 times `ms`."""
    around = Estimate(ms, 0.99 * ms, 1.01 * ms)
    found: dict[str, Any] = {
        "stage": name,
        "batch": batch,
        "n": 1000,
        "mean_ms": ms,
        "stdev_ms": ms / 20,
        "min_ms": 0.9 * ms,
        "max_ms": 1.2 * ms,
        "p50_ms": around,
        "p90_ms": Estimate(1.1 * ms, 1.09 * ms, 1.12 * ms),
        "p95_ms": Estimate(1.15 * ms, 1.12 * ms, 1.18 * ms),
        "p99_ms": Estimate(1.19 * ms, 1.15 * ms, 1.2 * ms),
        "p90_early_stopping_ms": 1.12 * ms,
        "trial_p50_ms": (ms, 1.001 * ms),
        "quantiles_ms": tuple(float(q) for q in np.linspace(0.9 * ms, 1.2 * ms, 101)),
        "warmup": Warmup(seconds=3.0, calls=300, steady=True),
    }
    return Stage(**found | changes)


def result(label: str = "onnx fp32", ms: float = 10.0, **changes: Any) -> Result:
    """An artifact that ran."""
    target, precision = label.split()[:2]
    found: dict[str, Any] = {
        "label": label,
        "bundle": "b",
        "target": target,
        "precision": precision,
        "backend": "onnxruntime",
        "status": "ok",
        "size_bytes": 10_000_000,
        "load_ms": (100.0, 120.0),
        "first_ms": (5.0, 6.0),
        "stages": (stage(ms=ms), stage("text_encode", ms / 2), stage("e2e_image", 2 * ms)),
        "throughput": (
            Throughput(tower="image", batch=1, per_s=Estimate(100.0, 99.0, 101.0)),
            Throughput(tower="image", batch=8, per_s=Estimate(200.0, 190.0, 210.0)),
        ),
        "memory": Memory(base_rss_mb=50.0, peak_rss_mb=150.0),
        "parity": Parity(passed=True, failures=(), image_cosines=(1.0, 0.9999), text_cosines=(0.99999,)),
    }
    return Result(**found | changes)


def top1(value: float = 0.6, **changes: Any) -> Accuracy:
    """A score."""
    found: dict[str, Any] = {
        "suite": "quick",
        "data": "d",
        "metric": "top1",
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "n": 5000,
    }
    return Accuracy(**found | changes)


def record(*results: Result, config: dict[str, Any] | None = None, env: dict[str, Any] | None = None) -> Record:
    """A whole record, of artifacts of which the first is the one that the others are compared with."""
    results = results or (result(), result("openvino fp32", 8.0))
    settings: dict[str, Any] = {
        "mode": "standard",
        "scenarios": ("single-stream",),
        "threads": 2,
        "trials": 2,
        "seconds": 60.0,
        "queries": 1024,
        "margin": 0.02,
        "inputs": Inputs(name="generated", sha256=f"sha256:{'0' * 64}", images=8, texts=8),
        "seed": 0,
    }
    device: dict[str, Any] = {
        "fingerprint": f"sha256:{'1' * 64}",
        "cpu": "a CPU",
        "isa": ("avx2",),
        "cores": 4,
        "usable_cpus": 2,
        "gpus": (),
        "memory_mb": 8000,
        "os": "Linux",
        "python": "CPython 3.11",
        "container": False,
        "power": Power(mode="unknown", governor="performance", battery=False, celsius=40.0),
        "packages": {"onnxruntime": "1.32.0"},
        "variables": {},
    }
    host = tuple(stage(name, 1.0) for name in ("decode", "preprocess", "tokenize", "similarity"))
    ratios = [
        Comparison(
            a=results[0].label,
            b=one.label,
            stage="image_encode",
            batch=1,
            ratio=Estimate(0.8, 0.79, 0.81),
            verdict="faster",
        )
        for one in results[1:]
    ]
    return Record(
        schema=SCHEMA,
        created="2026-01-01T00:00:00Z",
        tool="edgeclip 0.1.0",
        env=Environment(**device | (env or {})),
        config=Config(**settings | (config or {})),
        bundles=(Described(name="b", digest=f"sha256:{'2' * 64}", model="m", preprocess="3" * 64, host=host),),
        results=results,
        controls=(
            Control(stage="image_encode", batch=1, ratio=Estimate(1.0, 0.99, 1.01), passed=True),
            Control(stage="text_encode", batch=1, ratio=Estimate(1.0, 0.9, 1.1), passed=False),
        ),
        comparisons=tuple(ratios),
        canary_ms=(0.2, 0.2),
    )
