"""The record of a suite that has run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec
import numpy as np

from edgeclip import __version__
from edgeclip.benchmarks import device, energy, timing
from edgeclip.benchmarks.cold import Child
from edgeclip.benchmarks.record import (
    SCHEMA,
    Accuracy,
    Cold,
    Config,
    Described,
    Energy,
    Memory,
    Parity,
    Record,
    Result,
    Status,
    Throughput,
)
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.stages import ENCODE, HOST
from edgeclip.benchmarks.suite import Suite
from edgeclip.benchmarks.summary import Cells
from edgeclip.benchmarks.timing import Estimate
from edgeclip.benchmarks.trial import Trial
from edgeclip.benchmarks.verdict import margin_of
from edgeclip.bundle import Bundle


def record_of(suite: Suite, accuracy: Mapping[str, Sequence[Accuracy]] | None = None) -> Record:
    """What a suite has found.

    Args:
        accuracy: scores by label, which were measured elsewhere.
    """
    found = [Cells(cell, group.trials) for group in suite.groups for cell in suite.cells()]
    cells = [one for one in found if one.labels]
    return Record(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=f"edgeclip {__version__}",
        env=device.describe(profile=suite.profile),
        config=_config(suite),
        bundles=tuple(_described(suite, name, bundle) for name, bundle in suite.bundles.items()),
        results=tuple(_result(suite, row, (accuracy or {}).get(row.label, ())) for row in suite.rows),
        controls=tuple(control for one in cells if (control := one.control())),
        comparisons=tuple(comparison for one in cells for comparison in one.comparisons()),
        canary_ms=tuple(suite.canary_ms),
        flags=tuple(suite.flags),
    )


def _config(suite: Suite) -> Config:
    return Config(
        mode=suite.budget.mode,
        scenarios=tuple(suite.scenarios),
        threads=suite.threads,
        trials=suite.budget.trials,
        seconds=suite.budget.seconds,
        queries=suite.budget.queries,
        margin=margin_of(suite.budget.trials),
        inputs=suite.pictures.described,
        seed=suite.seed,
    )


def _described(suite: Suite, name: str, bundle: Bundle) -> Described:
    done = [
        (group.host[name], Cells((s, 1), group.trials)) for group in suite.groups if name in group.host for s in HOST
    ]
    preprocess = msgspec.json.encode(bundle.manifest.preprocess)
    return Described(
        name=name,
        digest=bundle.digest,
        model=bundle.manifest.model.name,
        preprocess=hashlib.sha256(preprocess).hexdigest(),
        host=tuple(one.stage(label) for label, one in done if label in one.labels),
    )


def _result(suite: Suite, row: Row, accuracy: Sequence[Accuracy]) -> Result:
    head: dict[str, Any] = {
        "label": row.label,
        "bundle": row.bundle,
        "target": row.target,
        "precision": row.precision,
        "backend": row.backend,
        "size_bytes": row.size_bytes,
        "accuracy": tuple(accuracy),
    }
    if row.missing:
        return Result(status="failed" if row.wanted else "skipped", reason=row.missing, **head)
    if row.label in suite.failed:
        return Result(status="failed", reason=suite.failed[row.label].message, **head)
    trials = next((group.trials for group in suite.groups if row in group.rows), [])
    mine = [one for one in (Cells(cell, trials) for cell in suite.cells()) if row.label in one.labels]
    stages = tuple(one.stage(row.label) for one in mine if suite.is_latency(one.cell))
    throughput = tuple(_throughput(row.label, mine, with_batches="offline" in suite.scenarios))
    loaded = [trial.loaded[row.label] for trial in trials]
    about: dict[str, Any] = {}
    if loaded:
        first = loaded[0]
        peaks = [trial.peak_rss_mb[row.label] for trial in trials]
        about = {
            "engine": first.engine,
            "device": first.device,
            "compute": first.compute,
            "load_ms": tuple(one.load_ms for one in loaded),
            "first_ms": tuple(one.first_ms for one in loaded),
            "memory": Memory(base_rss_mb=first.base_rss_mb, peak_rss_mb=max(peaks), vram_mb=first.vram_mb),
        }
    parity = _parity(trials, row.label)
    status, reason = _status(row, parity)
    return Result(
        status=status,
        reason=reason,
        stages=stages,
        throughput=throughput,
        cold=_cold(suite.starts.get(row.label, [])),
        energy=suite.energy.get(row.label, Energy(counter=energy.NONE)),
        sustained=suite.sustained.get(row.label),
        parity=parity,
        flags=tuple(dict.fromkeys(flag for stage in stages for flag in stage.flags)),
        **head,
        **about,
    )


def _status(row: Row, parity: Parity | None) -> tuple[Status, str]:
    if parity is not None and not parity.passed:
        return "below gate", "; ".join(parity.failures)
    if row.below_gate and row.reference is None:
        return "below gate", "its exporter measured that it breaks a bound"
    return "ok", ""


def _throughput(label: str, cells: Sequence[Cells], *, with_batches: bool) -> Iterator[Throughput]:
    """Of towers; a single query's follows from its latency."""
    for one in cells:
        stage, batch = one.cell
        if stage.endswith("_encode") and (with_batches or batch == 1):
            yield one.throughput(label, ENCODE[stage])


def _cold(children: Sequence[Child]) -> Cold | None:
    if not children:
        return None
    wall, cpu = ([getattr(child, name) * 1e3 for child in children] for name in ("wall_s", "cpu_s"))
    peak = float(np.median([child.peak_mb for child in children]))
    return Cold(n=len(children), start_ms=_median(wall), cpu_ms=_median(cpu), peak_rss_mb=peak)


def _median(values: Sequence[float]) -> Estimate:
    return timing.median(np.asarray(values, np.float64)[:, None])


def _parity(trials: Sequence[Trial], label: str) -> Parity | None:
    found = trials[0].parity.get(label) if trials else None
    return msgspec.convert(found, Parity) if found else None
