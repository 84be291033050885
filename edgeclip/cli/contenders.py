"""What was tuned among, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.cli.output import Output

if TYPE_CHECKING:
    from edgeclip.benchmarks.contenders import Contender, Figures, Speed
    from edgeclip.benchmarks.tuning import Tuning
    from edgeclip.devicefile import DeviceFile

SPEED = ("image ms", "95 % CI", "text ms", "images/s", "at batch")
COLUMNS = ("contender", "state", *SPEED, "drop", "bound", "known by", "MB", "load ms", "RAM MB")
MARKED = {"chosen": "ok", "kept": "ok", "dominated": "ok", "failed": "failed", "skipped": ""}
"""State -> whose mark it has; all others have that of what is below its gate."""


def show(output: Output, tuning: Tuning, file: DeviceFile | None, place: Path) -> None:
    """Print every contender, those that nothing dominates, and the choice."""
    output.document |= {
        "bundle": str(tuning.bundle.path),
        "digest": tuning.bundle.digest,
        "goal": tuning.goal,
        "budget_pt": tuning.budget_pt,
        "quick": tuning.quick,
        "flags": tuning.flags,
        "contenders": list(map(_plain, tuning.contenders)),
        "chosen": file,
        "path": str(place) if file else None,
    }
    _table(output, "Contenders", tuning.contenders)
    front = [one for one in tuning.contenders if one.state in ("chosen", "kept")]
    if len(front) == len(tuning.contenders):
        output.line("None of them is known to be dominated by another: all are the Pareto set.")
    elif front:
        rows = [_row(output, one)[:-1] for one in front]
        output.table("Pareto set, by latency, throughput, loss and size", COLUMNS, rows)
    if tuning.flags:
        output.line(f"Flags of the run: {'; '.join(tuning.flags)}.")
    if tuning.quick:
        output.line("Quick: one short look at each.")
    if file is not None:
        label = next(one.label for one in front if one.state == "chosen")
        output.line(f"For {file.goal}: {label}, batch {file.batch}: {file.rule}.")


def show_plan(output: Output, tuning: Tuning, place: Path, *, with_data: bool) -> None:
    """Print what would be measured, and what is known of it before.

    Args:
        with_data: losses would be measured.
    """
    planned = tuning.planned(with_data=with_data)
    seconds = tuning.planned_s(planned)
    output.document |= {
        "contenders": list(map(_plain, planned)),
        "batches": list(tuning.batches),
        "seconds": round(seconds),
        "path": str(place),
    }
    _table(output, "Contenders", planned)
    output.line(f"batches {', '.join(map(str, tuning.batches))}; at least {seconds:.0f} s; the device file: {place}")


def _table(output: Output, title: str, contenders: Sequence[Contender]) -> None:
    output.table(title, (*COLUMNS, "reason"), [_row(output, one) for one in contenders])


def _row(output: Output, one: Contender) -> list[str]:
    loss = one.loss
    lost = [_points(loss.drop_pt), _points(loss.bound_pt), loss.basis] if loss else ["", "", ""]
    reason = "" if one.state == "chosen" else one.reason  # which is the last line's
    costs = [f"{one.figures.load_ms:.0f}", f"{one.figures.peak_rss_mb:.0f}"] if one.figures else ["", ""]
    size = f"{one.size_bytes / 1e6:.1f}"
    return [one.label, _state(output, one.state), *_speeds(one.figures), *lost, size, *costs, reason]


def _state(output: Output, state: str) -> str:
    word = MARKED.get(state, "below gate")
    return output.status(word).replace(word, state) if word else state


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _speeds(figures: Figures | None) -> list[str]:
    """Latencies, and images a second at the best batch."""
    from edgeclip.benchmarks.report import interval, number

    if figures is None:
        return [""] * len(SPEED)
    image, text = figures.image_ms.of, figures.text_ms
    best = [number(figures.best_per_s.of.value), str(figures.best_batch)]
    return [number(image.value), interval(image), number(text.of.value) if text else "", *best]


def _plain(one: Contender) -> dict[str, Any]:
    figures = one.figures
    return {
        "label": one.label,
        "target": one.row.target,
        "precision": one.row.precision,
        "backend": one.row.backend,
        "threads": one.threads,
        "state": one.state,
        "reason": one.reason,
        "size_bytes": one.size_bytes,
        "loss": asdict(one.loss) if one.loss else None,
        "pass": "final" if one.is_final else "screening" if figures else None,
        "image_ms": _speed(figures.image_ms) if figures else None,
        "text_ms": _speed(figures.text_ms) if figures and figures.text_ms else None,
        "images_per_s": {str(n): _speed(speed) for n, speed in figures.images_per_s.items()} if figures else {},
        "load_ms": figures.load_ms if figures else None,
        "peak_rss_mb": figures.peak_rss_mb if figures else None,
    }


def _speed(speed: Speed) -> dict[str, Any]:
    return asdict(speed.of) | {"doubt": speed.doubt}
