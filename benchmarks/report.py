"""What was found, as tables on a terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from edgeclip.benchmarks.results import BUSY, CONTROL, Goal, Group, Row
from edgeclip.benchmarks.sides import Agreement
from edgeclip.benchmarks.timing import P90_NEEDS, PAUSE_S, RESAMPLES, Estimate
from edgeclip.cli import tables

SCHEMA = "edgeclip.spine/1"
COLUMNS = ("contender", "n", "p50", "95 % CI", "p90", "times better", "95 % CI ", "remark")
Table = tuple[str, Sequence[str], list[list[str]]]


@dataclass
class Report:
    """Everything of one run."""

    env: dict[str, Any]
    config: dict[str, Any]
    agreement: list[Agreement] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    canary_ms: list[float] = field(default_factory=list)
    """A fixed piece of work, before each group and at the end."""
    flags: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "schema": SCHEMA,
            "env": self.env,
            "config": self.config,
            "agreement": [asdict(one) for one in self.agreement],
            "results": [asdict(one) for one in self.groups],
            "controls": {one.key: asdict(one.control) for one in self.groups if one.control},
            "canary_ms": self.canary_ms,
            "flags": self.flags,
            "goals": [asdict(one) for one in self.goals],
        }


def write(report: Report, folder: Path) -> list[Path]:
    """Write `spine.json` and `spine.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / "spine.json": to_json(report), folder / "spine.md": to_markdown(report)}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def to_json(report: Report) -> str:
    """Numbers to six digits; more would be noise."""
    return json.dumps(rounded(report.document()), indent=1, ensure_ascii=False) + "\n"


def to_terminal(report: Report, stream: TextIO) -> None:
    """Tables, as wide as the terminal is."""
    for title, columns, rows in _tables(report):
        tables.write(stream, title, columns, rows)


def to_markdown(report: Report) -> str:
    """One page: goals, machine, method, and a table a group."""
    goals, *others = _tables(report)
    comparable, threads = report.config["mode"] == "standard", report.config["threads"]
    about = [*warnings(report.flags, comparable=comparable), table(goals), world(report.env, threads), _method(report)]
    parts = ["# edgeclip beside transformers", *about]
    return "\n\n".join([*parts, *map(table, others)]) + "\n"


def number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def _tables(report: Report) -> list[Table]:
    return [goals_table(report.goals), *map(group_table, report.groups), _agreement(report.agreement)]


def goals_table(goals: Sequence[Goal]) -> Table:
    """Bounds, and what was measured."""
    rows = []
    for goal in goals:
        word = "not measured" if goal.passed is None else "PASS" if goal.passed else "MISS"
        word += f" ({', '.join(goal.flags)})" if goal.flags else ""
        value = f"{number(goal.measured.value)}{goal.unit}" if goal.measured else ""
        rows.append([goal.name, goal.bound, value, interval(goal.measured), word])
    return "Goals", ("goal", "bound", "measured", "95 % CI", "verdict"), rows


def group_table(group: Group) -> Table:
    """Contenders of a group, and what disturbed it."""
    notes = f"; {group.baseline} is the baseline"
    if group.control:
        control = f"{group.control.value:.3f} [{interval(group.control, 3)}]"
        notes += f"; control A/A {control}"
    notes += f"; {', '.join(group.flags).upper()}" if group.flags else ""
    return f"{group.title} ({group.unit}{notes})", COLUMNS, [_row(row, group.unit) for row in group.rows]


def _row(row: Row, unit: str) -> list[str]:
    if row.skipped:
        return [row.contender, "", "", "", "", "", "", row.skipped]
    remark = f"+{number(row.over.value)} {unit} [{interval(row.over)}]" if row.over else ""
    tail = number(row.p90) if row.p90 is not None else ""
    value = number(row.p50.value) if row.p50 else ""
    times = f"{row.ratio.value:.2f}" if row.ratio else ""
    return [row.contender, str(row.n), value, interval(row.p50), tail, times, interval(row.ratio, 2), remark]


def _agreement(found: Sequence[Agreement]) -> Table:
    columns = ("contender", "photographs, least", "captions, least", "two different photographs, median")
    rows = [[a.contender, f"{a.image_min:.6f}", f"{a.text_min:.6f}", f"{a.other_images:.3f}"] for a in found]
    return "Cosine with transformers, of the same input", columns, rows


def interval(estimate: Estimate | None, decimals: int | None = None) -> str:
    """`low – high`, with three significant digits or so many decimals."""
    if estimate is None:
        return ""
    low, high = estimate.low, estimate.high
    return f"{number(low)} – {number(high)}" if decimals is None else f"{low:.{decimals}f} – {high:.{decimals}f}"


def table(one: Table) -> str:
    """In Markdown, under its title."""
    title, columns, rows = one
    return f"## {title}\n\n{grid(columns, rows)}"


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [[*columns], ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def warnings(flags: Sequence[str], *, comparable: bool) -> list[str]:
    """What a reader must know before the numbers."""
    found = [] if comparable else ["**Quick: not comparable.**"]
    return found + ([f"**Flags of the run: {', '.join(flags)}.**"] if flags else [])


def world(env: dict[str, Any], threads: int) -> str:
    """What was measured on, in a sentence or two."""
    packages = ", ".join(f"{name} {version}" for name, version in env["packages"].items() if version)
    variables = ", ".join(f"{name}={value}" for name, value in env["variables"].items()) or "none"
    return (
        f"Measured on {env['cpu']['model']}, {env['cpu']['usable']} CPUs ({', '.join(env['cpu']['isa'])}), "
        f"{env['memory_mb']} MB, {env['os']}, {env['python']}, with {threads} threads on both sides. "
        f"Packages: {packages}. Variables set: {variables}."
    )


def _method(report: Report) -> str:
    config = report.config
    return (
        "Both sides have the same ViT-B/32 with random weights, which decide nothing about speed. transformers runs "
        f"its own processor and `CLIPModel` in PyTorch's eager mode (attention: {config.get('attention', 'default')}); "
        "edgeclip runs with its defaults, its text cache off, its w8a8 calibrated on the same photographs. "
        "Within a group all contenders are called in turns in one process, forwards and then backwards, in an order "
        "that changes from round to round so that each follows each other equally often; garbage collection is off "
        "meanwhile. The sizes of thread pools are the libraries' defaults; PyTorch's threads spin for a while after a "
        f"call, so that {PAUSE_S * 1e3:g} ms pass before "
        "the next. 'Times better' is the ratio of medians to "
        f"the baseline, its interval a bootstrap over rounds ({RESAMPLES} resamples, seeded); p90 is given from "
        f"{P90_NEEDS} samples on. The control A/A is edgeclip's first contender against itself; a group is noisy where "
        f"its interval leaves {CONTROL[0]} – {CONTROL[1]}, and busy where other processes took over {BUSY:g} CPUs. "
        "PyTorch's threads suffer more from other processes than the engines' do, so that a busy group flatters "
        "edgeclip. Photographs are made from the two that scikit-learn carries, at quality 90, with bytes per pixel as "
        "a camera's. Whole processes start with their files in the page cache. Each contender had "
        f"{config['budget_s']:g} s a group and at least {config['min_queries']} calls."
    )


def rounded(value: Any) -> Any:
    """Numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
