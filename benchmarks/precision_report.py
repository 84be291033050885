"""What was found of each target and precision: JSON, a page, and the table in the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.benchmarks import report
from edgeclip.benchmarks.fidelity import Fidelity
from edgeclip.benchmarks.pace import BATCHES, MAIN, Rates
from edgeclip.benchmarks.report import Table, number
from edgeclip.benchmarks.results import Goal, Group, find
from edgeclip.benchmarks.sides import PEER
from edgeclip.benchmarks.subjects import MAX_DROP_PT
from edgeclip.benchmarks.timing import PAUSE_S, RESAMPLES, Estimate
from edgeclip.errors import UsageError
from edgeclip.paired import Cosines, Drop

SCHEMA = "edgeclip.precisions/1"
BEGIN, END = "<!-- precisions: begin, by `make bench-precisions` -->", "<!-- precisions: end -->"
COLUMNS = (
    *("target", "precision", "MB", "image ms", "32 images ms", "text ms", "top-1 %", "points lost [95 %]"),
    *("image cosine mean / p1 / min", "text cosine mean / p1 / min", "agreement %", "kept"),
)
FLEETING = {"load_average", "kept"}
"""What of the environment and the configuration may differ between runs that are joined."""
TIMES = (*(f"image/{batch}" for batch in BATCHES), "text")
"""Ends of the keys of a model's groups, in the order of the columns."""


@dataclass(frozen=True)
class Row:
    """One target at one precision of one model."""

    subject: str
    target: str
    precision: str
    size_bytes: int
    kept: int | None
    fidelity: Fidelity
    p50_ms: dict[str, float | None]
    """By the end of the group's key; None where it is not timed."""


@dataclass(frozen=True)
class Described:
    """A model, and what it was measured on."""

    key: str
    name: str
    bundle: str
    """Digest, `sha256:…`."""
    data: str
    n: int
    """Pictures."""


@dataclass
class Report:
    """Everything of one run."""

    env: dict[str, Any]
    config: dict[str, Any]
    models: list[Described] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    rates: Rates | None = None
    goals: list[Goal] = field(default_factory=list)
    canary_ms: list[float] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def goals(rows: Sequence[Row], groups: Sequence[Group], rates: Rates | None) -> list[Goal]:
    """What the project promises."""
    peer = find(groups, "b32/image/1")
    found = [_speed(peer), _rate(rates)]
    found += [_size(rows, target) for target in ("onnx", "openvino")]
    for precision, bound in (("w8a8", MAX_DROP_PT), ("w8a16", 0.1)):
        found += [_loss(row, bound) for row in rows if row.precision == precision and row.fidelity.drop]
    return [goal for goal in found if goal is not None]


def _speed(group: Group | None) -> Goal | None:
    row = group.row(MAIN) if group is not None and group.baseline == PEER else None
    if group is None or row is None or row.ratio is None:
        return None
    passed = row.ratio.value >= 5
    return Goal(
        f"ViT-B/32, {MAIN} over PyTorch eager fp32, batch 1", ">= 5x", row.ratio, "x", passed, list(group.flags)
    )


def _rate(rates: Rates | None) -> Goal | None:
    if rates is None:
        return None
    name = f"ViT-B/32, {MAIN}, batch {max(BATCHES)}: its rate by that of the best bare int8 product"
    return Goal(name, ">= 0.85", rates.share, "", rates.share.value >= 0.85)


def _size(rows: Sequence[Row], target: str) -> Goal | None:
    sizes = {row.precision: row.size_bytes for row in rows if (row.subject, row.target) == ("b32", target)}
    if not {"fp32", "w8a16"} <= sizes.keys():
        return None
    ratio = sizes["w8a16"] / sizes["fp32"]
    return Goal(f"ViT-B/32, {target} w8a16, size by fp32", "<= 0.27", Estimate(ratio, ratio, ratio), "", ratio <= 0.27)


def _loss(row: Row, bound: float) -> Goal:
    assert row.fidelity.drop is not None
    lost = row.fidelity.drop
    measured = Estimate(lost.drop_pt, lost.low_pt, lost.high_pt)
    name = f"{row.subject}, {row.target} {row.precision}: points of top-1 lost"
    return Goal(name, f"<= {bound:g}", measured, "", lost.drop_pt <= bound)


def read(path: Path) -> Report:
    """What `write` wrote.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("schema") != SCHEMA:
            raise UsageError(f"{path}: its schema is not {SCHEMA}")
        return msgspec.convert(document, Report)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise UsageError(f"{path}: no report of precisions: {exc}") from exc


def joined(found: Report, earlier: Report) -> Report:
    """A run of some models, with the others from an earlier one.

    Raises:
        UsageError: the runs are not alike.
    """
    then, now = _conditions(earlier), _conditions(found)
    if differ := [name for name in then.keys() & now.keys() if then[name] != now[name]]:
        raise UsageError(f"the earlier run is of another {', '.join(sorted(differ))}", hint="measure all models anew")
    new = {model.key for model in found.models}
    old = [model for model in earlier.models if model.key not in new]
    keys = {model.key for model in old}
    rows = [row for row in earlier.rows if row.subject in keys] + found.rows
    groups = [group for group in earlier.groups if group.key.partition("/")[0] in keys] + found.groups
    rates = found.rates or earlier.rates
    return Report(
        env=found.env,
        config=found.config,
        models=old + found.models,
        rows=rows,
        groups=groups,
        rates=rates,
        goals=goals(rows, groups, rates),
        canary_ms=earlier.canary_ms + found.canary_ms,
        flags=list(dict.fromkeys(earlier.flags + found.flags)),
    )


def _conditions(found: Report) -> dict[str, Any]:
    """What must be the same in runs that are joined, as JSON has it."""
    told = {name: value for name, value in {**found.env, **found.config}.items() if name not in FLEETING}
    return dict(json.loads(json.dumps(report.rounded(told))))


def write(found: Report, folder: Path) -> list[Path]:
    """Write `precisions.json` and `precisions.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.rounded(found.document()), indent=1, ensure_ascii=False) + "\n"
    files = {folder / "precisions.json": text, folder / "precisions.md": to_markdown(found)}
    for path, content in files.items():
        path.write_text(content, encoding="utf-8")
    return list(files)


def to_markdown(found: Report) -> str:
    """One page: goals, machine, method, and all tables."""
    comparable, threads = found.config["mode"] == "standard", found.config["threads"]
    parts = ["# Precisions", *report.warnings(found.flags, comparable=comparable)]
    parts += [report.table(report.goals_table(found.goals)), report.world(found.env, threads), _method(found)]
    parts += [report.table(one) for one in tables(found)]
    parts += [report.table(report.group_table(one)) for one in found.groups]
    return "\n\n".join(parts) + "\n"


def tables(found: Report) -> list[Table]:
    """A table a model, and the rates of integer products."""
    each = [_model_table(one, [row for row in found.rows if row.subject == one.key]) for one in found.models]
    return each + ([_rates_table(found.rates)] if found.rates else [])


def _model_table(model: Described, rows: Sequence[Row]) -> Table:
    return f"{model.name}: {model.n} pictures of {model.data}", COLUMNS, [_cells(row) for row in rows]


def _cells(row: Row) -> list[str]:
    kept, fidelity = row.kept, row.fidelity
    times = [row.p50_ms.get(key) for key in TIMES]
    return [
        row.target,
        row.precision,
        f"{row.size_bytes / 1e6:.1f}",
        *(number(each) if each is not None else "" for each in times),
        f"{100 * fidelity.top1.value:.2f}" if fidelity.top1 else "",
        _lost(fidelity.drop),
        _cosines(fidelity.images),
        _cosines(fidelity.texts),
        f"{100 * fidelity.agreement:.1f}",
        str(kept) if kept is not None else "",
    ]


def _lost(lost: Drop | None) -> str:
    return f"{lost.drop_pt:+.2f} [{lost.low_pt:+.2f}, {lost.high_pt:+.2f}]" if lost else ""


def _cosines(found: Cosines) -> str:
    return " / ".join(f"{value:.5f}" for value in (found.mean, found.p1, found.min))


def _rates_table(rates: Rates) -> Table:
    rows = [
        [one.by, one.product, number(one.p50_ms), number(one.rate.value), report.interval(one.rate)]
        for one in (rates.tower, *rates.bare)
    ]
    title = (
        f"8-bit products in 10⁹ operations a second: the tower's {rates.share.value:.3f} of the best bare one "
        f"[{report.interval(rates.share, 3)}]"
    )
    return title, ("by", "product", "ms", "rate", "95 % CI"), rows


def insert(page: str, block: str) -> str:
    """A page with what lies between the markers replaced.

    Raises:
        UsageError: the markers are not there, once each and in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise UsageError("the page has no place for the tables", hint=f"one line {BEGIN!r} and, behind it, one {END!r}")
    return page[: page.index(BEGIN)] + f"{BEGIN}\n\n{block}\n\n{END}" + page[page.index(END) + len(END) :]


def block(found: Report) -> str:
    """What goes into the documentation."""
    threads = found.config["threads"]
    parts = [*report.warnings(found.flags, comparable=True), report.world(found.env, threads), _method(found)]
    parts += [report.table(one).replace("## ", "### ", 1) for one in tables(found)]
    parts += [report.table(report.goals_table(found.goals)).replace("## ", "### ", 1)]
    return "\n\n".join(parts)


def _method(found: Report) -> str:
    config = found.config
    text = (
        "Times are medians of calls with everything ready, uint8 pixels or a string; all variants of a model are "
        "called in turns in one process, in an order that changes from round to round, "
        f"{PAUSE_S * 1e3:g} ms apart, each for {config['budget_s']:g} s and at least {config['min_queries']} times. "
        "MB are both towers' files. The reference is onnx fp32; TensorRT's artifact is run by ONNX Runtime, for its "
        "accuracy alone. Points lost are of top-1 on the same pictures, with Tango's interval. Agreement is the share "
        "of pictures whose nearest class is that of fp32, or nearest caption where the model has random weights. Kept "
        f"are layers that went back to floating point, so that no more than {MAX_DROP_PT:g} points are lost."
    )
    if found.rates is None:
        return text
    rates = found.rates
    return text + (
        " PyTorch is transformers' `CLIPModel` in eager mode, of the same weights. The tower's rate counts its matrix "
        "products alone, by all of the time that a call takes; bare products are of the tower's own shapes, uint8 by "
        "int8 in OpenVINO and int8 by int8 in PyTorch, in rounds with it that hold nothing else. Its large products, "
        f"{rates.covered:.1%} of its operations, would take {number(rates.bound_ms)} ms of its "
        f"{number(rates.tower.p50_ms)} at the best rate of each shape. Intervals are bootstraps over rounds "
        f"({RESAMPLES} resamples, seeded)."
    )
