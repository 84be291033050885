"""The pictures of a report, each drawn from a record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeclip.benchmarks import tabulated
from edgeclip.benchmarks.record import Record, Result
from edgeclip.benchmarks.report import number
from edgeclip.benchmarks.svg import BOTTOM, TOP, Frame, fitting, room_for, series
from edgeclip.benchmarks.tabulated import named
from edgeclip.benchmarks.timing import Estimate

HEIGHT = 260
BAR = 22
"""Height of a row of a chart that has one for each artifact."""
COSINES = "1 − cosine to the fp32 reference"
HISTOGRAM = (-8.0, 0.0)
"""Powers of ten that cosines' distances from 1 are counted in; smaller ones count as the smallest."""


@dataclass(frozen=True)
class Chart:
    """A picture with its words."""

    title: str
    about: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    """Classes of a colour, and what it stands for."""


def charts(record: Record) -> list[Chart]:
    """Those that the record has numbers for."""
    ran = [one for one in record.results if one.status in ("ok", "below gate")]
    drawn = [
        latency(ran, "image_encode"),
        bars(record, ran),
        pareto(ran),
        throughput(ran),
        forest(record),
        parity(ran),
        sustained(ran),
    ]
    return [one for one in drawn if one is not None]


def latency(results: Sequence[Result], stage: str) -> Chart | None:
    """The share of calls that took no longer than a time."""
    found = [(i, one.label, each) for i, one in enumerate(results) if (each := one.stage(stage))]
    if not found:
        return None
    frame = Frame(HEIGHT)
    low = min(each.quantiles_ms[0] for _, _, each in found)
    high = max(each.quantiles_ms[99] for _, _, each in found)
    x = frame.horizontal(low, max(high, low * 1.01), is_log=high > 3 * low)
    y = frame.vertical(0, 100)
    frame.x_axis(x, "ms" + (", on a logarithmic scale" if x.is_log else ""))
    frame.y_axis(y, "% of calls")
    for i, _, each in found:
        points = [(x(ms), y(share)) for share, ms in enumerate(each.quantiles_ms[:100])]
        frame.path(points, f"line {series(i)}")
    return Chart(
        "Latency of one image",
        "The share of calls that took at most so long, from pixels that are ready to the embedding; up to the 99th "
        "percentile.",
        frame.render("latency distribution by artifact"),
        _legend([(i, label) for i, label, _ in found]),
    )


def bars(record: Record, results: Sequence[Result]) -> Chart | None:
    """What the parts of an embedding from a file take, beside what the whole was measured to take."""
    rows = []
    for one in results:
        host = {stage.stage: stage.p50_ms.value for stage in record.host_of(one)}
        encode, whole = one.stage("image_encode"), one.stage("e2e_image")
        if encode and whole and "decode" in host:
            rows.append((one.label, [host["decode"], host["preprocess"], encode.p50_ms.value], whole.p50_ms.value))
    if not rows:
        return None
    frame = _rows([label for label, _, _ in rows])
    x = frame.horizontal(0, 1.05 * max(max(sum(parts), total) for _, parts, total in rows))
    frame.x_axis(x, "ms, medians")
    names = ("decode", "resize and crop", "encode")
    for i, (label, parts, total) in enumerate(rows):
        top, at = _label(frame, i, label), 0.0
        for kind, (name, ms) in enumerate(zip(names, parts, strict=True)):
            frame.box(x(at), top + 4, x(at + ms) - x(at), BAR - 8, f"fill s{kind} part", f"{name}: {number(ms)} ms")
            at += ms
        frame.line(x(total), top + 1, x(total), top + BAR - 1, "mark")
    legend = [(f"s{kind}", name) for kind, name in enumerate(names)]
    return Chart(
        "From a file to its embedding",
        "Bars are the parts, each measured alone; the line is the whole, measured as one call.",
        frame.render("stages by artifact"),
        (*legend, ("mark", "the whole")),
    )


def pareto(results: Sequence[Result]) -> Chart | None:
    """Accuracy against latency, or size where no accuracy is known; the best trade-offs are joined."""
    found = [(i, one, each.p50_ms) for i, one in enumerate(results) if (each := one.stage("image_encode"))]
    scored = [(i, one, ms, score) for i, one, ms in found if (score := tabulated.mean_top1(one))]
    if not found:
        return None
    if not scored:
        sizes = [(i, one, ms, _exactly(one.size_bytes / 1e6)) for i, one, ms in found]
        about = "No accuracy was given to this report (--accuracy FILE): the picture has size in its place."
        return _trade_off(sizes, "MB", "Latency and size", about, more_is_better=False)
    percent = [(i, one, ms, Estimate(*(100 * v for v in (s.value, s.low, s.high)))) for i, one, ms, s in scored]
    sets = ", ".join(dict.fromkeys(a.data for _, one, _, _ in scored for a in one.accuracy if a.metric == "top1"))
    about = f"Zero-shot top-1, the mean over {sets}, with its 95 % interval. Circles are larger where files are."
    return _trade_off(percent, "top-1 %", "Latency, accuracy and size", about, more_is_better=True)


def _trade_off(
    points: Sequence[tuple[int, Result, Estimate, Estimate]],
    unit: str,
    title: str,
    about: str,
    *,
    more_is_better: bool,
) -> Chart:
    frame = Frame(HEIGHT + 20)
    times = [ms for _, _, ms, _ in points]
    values = [value for _, _, _, value in points]
    x = frame.horizontal(0, 1.12 * max(ms.high for ms in times))
    spread = max(v.high for v in values) - min(v.low for v in values)
    margin = 0.12 * spread or 0.05 * values[0].high
    low = min(v.low for v in values) - margin if more_is_better else 0.0
    y = frame.vertical(low, max(v.high for v in values) + margin)
    frame.x_axis(x, "ms for one image, median")
    frame.y_axis(y, unit)
    sign = 1 if more_is_better else -1
    best = frontier([(ms.value, sign * value.value) for ms, value in zip(times, values, strict=True)])
    frame.path([(x(times[i].value), y(values[i].value)) for i in best], "frontier")
    largest = max(one.size_bytes for _, one, _, _ in points) or 1
    for i, one, ms, value in points:
        at = x(ms.value), y(value.value)
        frame.line(x(ms.low), at[1], x(ms.high), at[1], f"whisker {series(i)}")
        frame.line(at[0], y(value.low), at[0], y(value.high), f"whisker {series(i)}")
        radius = 5 + 6 * math.sqrt(one.size_bytes / largest) if more_is_better else 7
        words = f"{one.label}: {number(ms.value)} ms, {number(value.value)} {unit}, {one.size_bytes / 1e6:.1f} MB"
        frame.dot(*at, radius, f"fill {series(i)} point", words)
        frame.text(at[0], at[1] + 3.5, str(i + 1), "number", "middle")
    words = f"{about} The dashed line joins what nothing else here beats in both."
    legend = _legend([(i, f"{i + 1} {one.label}") for i, one, _, _ in points])
    return Chart(title, words, frame.render(title), legend)


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points (cost, worth) that no other beats in one and equals in the other; by cost."""
    ordered = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    for i in ordered:
        if not found or points[i][1] > points[found[-1]][1]:
            found.append(i)
    return found


def throughput(results: Sequence[Result]) -> Chart | None:
    """Images a second by batch."""
    found = [
        (i, one.label, [(each.batch, each.per_s) for each in one.throughput if each.tower == "image"])
        for i, one in enumerate(results)
    ]
    found = [(i, label, sorted(points)) for i, label, points in found if len(points) > 1]
    if not found:
        return None
    frame = Frame(HEIGHT, left=54)
    batches = sorted({batch for _, _, points in found for batch, _ in points})
    x = frame.horizontal(batches[0] * 0.9, batches[-1] * 1.1, is_log=True)
    y = frame.vertical(0, 1.05 * max(rate.high for _, _, points in found for _, rate in points))
    frame.x_axis(x, "batch", batches)
    frame.y_axis(y, "images/s")
    for i, label, points in found:
        frame.path([(x(batch), y(rate.value)) for batch, rate in points], f"line {series(i)}")
        for batch, rate in points:
            frame.line(x(batch), y(rate.low), x(batch), y(rate.high), f"whisker {series(i)}")
            words = f"{label}, batch {batch}: {number(rate.value)} images/s"
            frame.dot(x(batch), y(rate.value), 3.5, f"fill {series(i)} point", words)
    return Chart(
        "Throughput",
        "Images a second from pixels that are ready, with 95 % intervals.",
        frame.render("throughput by batch"),
        _legend([(i, label) for i, label, _ in found]),
    )


def forest(record: Record) -> Chart | None:
    """Ratios to the first artifact's times, with their intervals, and the controls."""
    lines: list[tuple[str, Estimate, str]] = []
    for (stage, batch), (controls, comparisons) in tabulated.by_cell(record).items():
        if batch == 1 and stage in ("image_encode", "e2e_image"):
            lines += [(f"{named(stage)}: control", one.ratio, "control") for one in controls]
            lines += [(f"{named(stage)}: {one.b}", one.ratio, one.verdict) for one in comparisons]
    if len(lines) < 3:
        return None
    frame = _rows([label for label, _, _ in lines])
    low = min(0.9, *(ratio.low for _, ratio, _ in lines))
    high = max(1.1, *(ratio.high for _, ratio, _ in lines))
    x = frame.horizontal(low / 1.03, high * 1.03, is_log=True)
    frame.x_axis(x, f"time × that of {record.comparisons[0].a}")
    margin = record.config.margin
    frame.box(x(1 - margin), TOP, x(1 + margin) - x(1 - margin), frame.bottom - TOP, "band")
    for i, (label, ratio, verdict) in enumerate(lines):
        middle = _label(frame, i, label) + BAR / 2
        kind = {"faster": "s1", "slower": "s5", "control": "plain"}.get(verdict, "weak")
        frame.line(x(ratio.low), middle, x(ratio.high), middle, f"whisker {kind}")
        frame.dot(x(ratio.value), middle, 4, f"fill {kind}", f"{label}: {ratio.value:.3f}, {verdict}")
    return Chart(
        "Differences that can be told from none",
        f"Ratios within the same rounds, with 95 % intervals. Within the band of {100 * margin:g} % there is no "
        "difference; the control is a second process of the first artifact.",
        frame.render("ratios to the first artifact"),
        (("s1", "faster"), ("s5", "slower"), ("weak", "equal or undecided"), ("plain", "control")),
    )


def parity(results: Sequence[Result]) -> Chart | None:
    """How many golden inputs lie how far from their reference."""
    found = [
        (one.label, [*one.parity.image_cosines, *one.parity.text_cosines]) for one in results if one.parity is not None
    ]
    if not found:
        return None
    edges = np.arange(HISTOGRAM[0], HISTOGRAM[1] + 0.25, 0.5)
    counts = [np.histogram(_distances(cosines), edges)[0] for _, cosines in found]
    used = np.flatnonzero(np.sum(counts, axis=0))
    first, last = max(0, int(used[0]) - 1), min(len(edges) - 1, int(used[-1]) + 2)
    frame = _rows([label for label, _ in found])
    x = frame.horizontal(10 ** edges[first], 10 ** edges[last], is_log=True)
    frame.x_axis(x, f"{COSINES}, on a logarithmic scale")
    for i, ((label, cosines), count) in enumerate(zip(found, counts, strict=True)):
        base = _label(frame, i, label) + BAR - 1
        for j in range(first, last):
            height = (BAR - 4) * count[j] / max(count.max(), 1)
            left, right = x(10 ** edges[j]), x(10 ** edges[j + 1])
            words = f"{label}: {count[j]} of {len(cosines)} inputs"
            if count[j]:
                frame.box(left + 0.5, base - height, right - left - 1, height, "fill s0", words)
        frame.line(frame.left, base, x(10 ** edges[last]), base, "grid")
    return Chart(
        "Parity on this device",
        "Golden inputs, both towers, by how far their embedding is from the fp32 reference: further left is closer. "
        "What is closer than rounding can tell is counted at the left end.",
        frame.render("parity histogram by artifact"),
    )


def sustained(results: Sequence[Result]) -> Chart | None:
    """Medians over a long run."""
    found = [(i, one.label, one.sustained.moments) for i, one in enumerate(results) if one.sustained]
    if not found:
        return None
    frame = Frame(HEIGHT)
    x = frame.horizontal(0, max(1.0, *(moments[-1].at_s for _, _, moments in found)))
    y = frame.vertical(0, 1.1 * max(moment.p50_ms for _, _, moments in found for moment in moments))
    frame.x_axis(x, "s")
    frame.y_axis(y, "ms, median")
    for i, _, moments in found:
        frame.path([(x(moment.at_s), y(moment.p50_ms)) for moment in moments], f"line {series(i)}")
    heat = [moment.celsius for _, _, moments in found for moment in moments if moment.celsius is not None]
    words = f" The device had {min(heat):.0f} to {max(heat):.0f} °C." if heat else " The device tells no temperature."
    return Chart(
        "Without a pause",
        f"Single images one after the other.{words}",
        frame.render("latency over time"),
        _legend([(i, label) for i, label, _ in found]),
    )


def _rows(labels: Sequence[str]) -> Frame:
    return Frame(TOP + BAR * len(labels) + BOTTOM, left=room_for(labels))


def _label(frame: Frame, number: int, label: str) -> float:
    """Write a row's label; returns the row's upper edge."""
    top = TOP + BAR * number
    frame.text(frame.left - 6, top + BAR / 2 + 4, fitting(label, frame.left), "tick", "end")
    return top


def _legend(found: Sequence[tuple[int, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((series(i), label) for i, label in found)


def _distances(cosines: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    found = np.log10(np.clip(1 - np.asarray(cosines, np.float64), 10.0 ** HISTOGRAM[0], 1.0))
    return np.clip(found, HISTOGRAM[0], HISTOGRAM[1] - 1e-9)


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)
