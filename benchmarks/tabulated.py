"""A record as tables: the same cells on a terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.benchmarks.record import Comparison, Control, Profiled, Record, Result, Stage, Throughput
from edgeclip.benchmarks.report import Table, interval, number
from edgeclip.benchmarks.scored import TOP1
from edgeclip.benchmarks.timing import Estimate
from edgeclip.cli.output import MARKS

COLUMNS = (
    *("artifact", "status", "MB", "load ms", "first ms"),
    *("image p50 ms", "p90", "p95", "p99", "text p50 ms", "p90 ", "file to embedding p50 ms", "p90  "),
    *(
        "images/s",
        "at batch",
        "cold start ms",
        "peak MB",
        "VRAM MB",
        "mJ/image",
        "top-1 %",
        "cos min",
        "flags",
        "reason",
    ),
)
STAGES = ("stage", "artifact", "batch", "n", "p50 ms", "95 % CI", "p90", "p95", "p99", "mean", "max", "flags")
COMPARED = ("stage", "batch", "artifact", "beside", "time ×", "95 % CI", "verdict")
SKIPPED = "➖"


def tables(record: Record) -> list[Table]:
    """All that a record has to say in numbers."""
    found = [("Artifacts", COLUMNS, [_row(one) for one in record.results]), stages(record)]
    if record.comparisons:
        found.append(compared(record))
    if any(one.throughput for one in record.results):
        found.append(_throughput(record))
    if any(one.sustained for one in record.results):
        found.append(_sustained(record))
    if any(one.accuracy for one in record.results):
        found.append(_accuracy(record))
    return [_without_empty(table) for table in found]


def stages(record: Record) -> Table:
    """Each stage of each artifact, the host's own first."""
    rows = [_stage(stage, one.name) for one in record.bundles for stage in one.host]
    rows += [_stage(stage, one.label) for one in record.results for stage in one.stages]
    return "Stages", STAGES, rows


def compared(record: Record) -> Table:
    """Verdicts, with the control of each cell."""
    rows = []
    for controls, comparisons in by_cell(record).values():
        rows += [_control(one) for one in controls]
        rows += [_comparison(one) for one in comparisons]
    return "Comparisons, in the same rounds", COMPARED, rows


Cells = dict[tuple[str, int], tuple[list[Control], list[Comparison]]]


def by_cell(record: Record) -> Cells:
    """The controls and the comparisons of each stage and batch."""
    found: Cells = {}
    for control in record.controls:
        found.setdefault((control.stage, control.batch), ([], []))[0].append(control)
    for comparison in record.comparisons:
        found.setdefault((comparison.stage, comparison.batch), ([], []))[1].append(comparison)
    return found


def environment(record: Record) -> list[tuple[str, str]]:
    """What was measured on, and how: names and values."""
    env, config = record.env, record.config
    facts = {
        "device": f"{env.cpu}, {env.usable_cpus} of {env.cores} CPUs, {env.memory_mb} MB",
        "instruction sets": ", ".join(env.isa),
        "GPU": "; ".join(env.gpus),
        "system": f"{env.os}, {env.python}" + (", in a container" if env.container else ""),
        "power": f"mode {env.power.mode}, governor {env.power.governor}"
        + (", on battery" if env.power.battery else ""),
        "profile": _profiled(env.profile) if env.profile else "",
        "packages": ", ".join(f"{name} {version}" for name, version in env.packages.items()),
        "variables": ", ".join(f"{name}={value}" for name, value in env.variables.items()) or "none that matter",
        "fingerprint": env.fingerprint,
        "scenarios": f"{', '.join(config.scenarios)}; {config.mode}, {config.threads} threads, {config.trials} trials",
        "inputs": f"{config.inputs.name}: {config.inputs.images} pictures, {config.inputs.texts} captions",
        "bundles": "; ".join(f"{one.name} ({one.model}, {one.digest})" for one in record.bundles),
        "fixed work": f"{', '.join(f'{ms:.3f}' for ms in record.canary_ms)} ms",
        "measured": f"{record.created} by {record.tool}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _profiled(profile: Profiled) -> str:
    return "; ".join([profile.name, *(f"{name} clock {mhz:.0f} MHz" for name, mhz in profile.clocks_mhz.items())])


def named(stage: str) -> str:
    """As tables call it."""
    return stage.replace("_", " ")


def mark(result: Result) -> str:
    """The status with its mark."""
    return f"{MARKS.get(result.status, SKIPPED)} {result.status}"


def top1(result: Result) -> list[Estimate]:
    """Its zero-shot scores, each with its interval."""
    return [Estimate(one.value, one.low, one.high) for one in result.accuracy if one.metric == TOP1]


def mean_top1(result: Result) -> Estimate | None:
    """The mean over data sets; its interval takes their errors for independent."""
    found = top1(result)
    if not found:
        return None
    value = float(np.mean([one.value for one in found]))
    below, above = (float(np.sqrt(sum(e**2 for e in errors))) / len(found) for errors in _errors(found))
    return Estimate(value, value - below, value + above)


def cosine_min(result: Result) -> float | None:
    """The least cosine of a golden input."""
    found = result.parity.image_cosines + result.parity.text_cosines if result.parity else ()
    return min(found, default=None)


def best_throughput(result: Result) -> Throughput | None:
    """Most images a second, at whichever batch."""
    found = [one for one in result.throughput if one.tower == "image"]
    return max(found, key=lambda one: one.per_s.value, default=None)


def _row(one: Result) -> list[str]:
    image, text, whole = (one.stage(name) for name in ("image_encode", "text_encode", "e2e_image"))
    fastest, energy, score = best_throughput(one), one.energy, mean_top1(one)
    least = cosine_min(one)
    return [
        one.label,
        mark(one),
        f"{one.size_bytes / 1e6:.1f}" if one.size_bytes else "",
        _middle(one.load_ms),
        _middle(one.first_ms),
        *_tail(image, "p50_ms", "p90_ms", "p95_ms", "p99_ms"),
        *_tail(text, "p50_ms", "p90_ms"),
        *_tail(whole, "p50_ms", "p90_ms"),
        number(fastest.per_s.value) if fastest else "",
        str(fastest.batch) if fastest else "",
        number(one.cold.start_ms.value) if one.cold else "",
        f"{one.memory.peak_rss_mb:.0f}" if one.memory else "",
        f"{one.memory.vram_mb:.0f}" if one.memory and one.memory.vram_mb is not None else "",
        (number(energy.image_mj) if energy.image_mj is not None else energy.counter) if energy else "",
        f"{100 * score.value:.1f}" if score else "",
        f"{least:.6f}" if least is not None else "",
        ", ".join(one.flags),
        one.reason,
    ]


def _stage(one: Stage, label: str) -> list[str]:
    tails = _tail(one, "p90_ms", "p95_ms", "p99_ms")
    head = [named(one.stage), label, str(one.batch), str(one.n), number(one.p50_ms.value)]
    return [*head, interval(one.p50_ms), *tails, number(one.mean_ms), number(one.max_ms), ", ".join(one.flags)]


def _tail(stage: Stage | None, *names: str) -> list[str]:
    found: list[Estimate | None] = [getattr(stage, name) if stage else None for name in names]
    return [number(one.value) if one else "" for one in found]


def _control(one: Control) -> list[str]:
    verdict = "control passed" if one.passed else "control failed"
    return [named(one.stage), str(one.batch), "control A/A", "", *_ratio(one.ratio), verdict]


def _comparison(one: Comparison) -> list[str]:
    return [named(one.stage), str(one.batch), one.b, one.a, *_ratio(one.ratio), one.verdict]


def _ratio(one: Estimate) -> list[str]:
    return [f"{one.value:.3f}", interval(one, 3)]


def _throughput(record: Record) -> Table:
    rows = [
        [one.label, each.tower, str(each.batch), number(each.per_s.value), interval(each.per_s), ", ".join(each.flags)]
        for one in record.results
        for each in one.throughput
    ]
    return "Throughput", ("artifact", "tower", "batch", "inputs/s", "95 % CI", "flags"), rows


def _sustained(record: Record) -> Table:
    rows = [
        [
            one.label,
            f"{found.seconds:.0f}",
            str(found.n),
            number(found.first_ms),
            number(found.last_ms),
            f"{found.last_ms / found.first_ms:.3f}",
            ", ".join([*found.throttled, *found.flags]),
        ]
        for one in record.results
        if (found := one.sustained)
    ]
    return "Sustained", ("artifact", "s", "images", "first tenth ms", "last tenth ms", "last / first", "signs"), rows


def _accuracy(record: Record) -> Table:
    rows = [
        [
            one.label,
            each.data,
            each.metric,
            f"{100 * each.value:.1f}",
            f"{100 * each.low:.1f} – {100 * each.high:.1f}",
            f"{each.drop_pt:.2f}" if each.drop_pt is not None else "",
            str(each.n),
        ]
        for one in record.results
        for each in one.accuracy
    ]
    return "Accuracy", ("artifact", "data", "metric", "%", "95 % interval", "points lost", "images"), rows


def _errors(found: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [one.value - one.low for one in found], [one.high - one.value for one in found]


def _middle(values: Sequence[float]) -> str:
    return number(float(np.median(values))) if values else ""


def _without_empty(table: Table) -> Table:
    title, columns, rows = table
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def remarks(record: Record) -> list[str]:
    """What a reader must know before the numbers."""
    found = (
        [f"{record.config.mode.capitalize()}: too short to compare runs by."]
        if record.config.mode != "standard"
        else []
    )
    if record.env.profile and record.env.profile.differs:
        found.append(f"Not set as {record.env.profile.name} says: {'; '.join(record.env.profile.differs)}.")
    if record.flags:
        found.append(f"Flags of the run: {'; '.join(record.flags)}.")
    failed = [one for one in record.controls if not one.passed]
    if failed:
        cells = ", ".join(f"{named(one.stage)} at batch {one.batch}" for one in failed)
        found.append(f"Nothing is ranked where the control failed: {cells}.")
    return found
