"""Pictures as SVG: a frame with two axes, on which charts draw. Colours are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 38
SERIES = 8
"""Colours; more series than that are dashed."""
_LETTER = 6.2
"""Width of one, at the size of labels."""


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Four to eight round numbers."""
        if self.is_log:
            return _log_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]


@dataclass
class Frame:
    """A picture.

    Args:
        left: room for the labels of the vertical axis.
    """

    height: float
    left: float = LEFT
    parts: list[str] = field(default_factory=list)

    @property
    def bottom(self) -> float:
        """Where the horizontal axis lies."""
        return self.height - BOTTOM

    def horizontal(self, low: float, high: float, *, is_log: bool = False) -> Scale:
        """A scale from left to right."""
        return Scale(low, high, self.left, WIDTH - RIGHT, is_log)

    def vertical(self, low: float, high: float, *, is_log: bool = False) -> Scale:
        """A scale from bottom to top."""
        return Scale(low, high, self.bottom, TOP, is_log)

    def x_axis(self, scale: Scale, title: str, ticks: Sequence[float] | None = None) -> None:
        """Lines, numbers and a title below."""
        for value in ticks or _apart(scale):
            x = scale(value)
            self.line(x, TOP, x, self.bottom, "grid")
            self.text(x, self.bottom + 14, tick(value), "tick", "middle")
        self.text((self.left + WIDTH - RIGHT) / 2, self.height - 6, title, "axis", "middle")

    def y_axis(self, scale: Scale, title: str) -> None:
        """Lines, numbers and a title, which stands upright."""
        for value in scale.ticks():
            y = scale(value)
            self.line(self.left, y, WIDTH - RIGHT, y, "grid")
            self.text(self.left - 5, y + 3.5, tick(value), "tick", "end")
        middle = (TOP + self.bottom) / 2
        self.parts.append(
            f'<text class="axis" text-anchor="middle" transform="translate(11 {_n(middle)}) rotate(-90)">'
            f"{escape(title)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.parts.append(f'<line class="{kind}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        steps = " ".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{steps}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        """A filled rectangle; the title is shown where a pointer rests on it."""
        shape = f'class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}"'
        self.parts.append(f"<rect {shape}>{_title(title)}</rect>")

    def dot(self, x: float, y: float, radius: float, kind: str, title: str = "") -> None:
        """A filled circle."""
        shape = f'class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"'
        self.parts.append(f"<circle {shape}>{_title(title)}</circle>")

    def text(self, x: float, y: float, words: str, kind: str, anchor: str = "start") -> None:
        """Words, with their baseline at y."""
        shape = f'class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
        self.parts.append(f"<text {shape}>{escape(words)}</text>")

    def render(self, label: str) -> str:
        """The picture; the label is for those who cannot see it."""
        box = f'viewBox="0 0 {WIDTH} {_n(self.height)}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(self.parts)}</svg>'


def room_for(labels: Sequence[str]) -> float:
    """How wide the labels of a vertical axis are, at most half of the picture."""
    return min(WIDTH / 2, 10 + _LETTER * max(map(len, labels), default=0))


def fitting(label: str, room: float) -> str:
    """The label, cut where it is longer than the room."""
    most = int((room - 10) / _LETTER)
    return label if len(label) <= most else f"{label[: most - 1]}…"


def series(number: int) -> str:
    """Classes of a series' colour."""
    return f"s{number % SERIES}" + (" dashed" if number >= SERIES else "")


def tick(value: float) -> str:
    """A short number."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    if len(inside) >= 3 or high / low > 10:
        return inside
    return Scale(low, high, 0, 1).ticks()


def _apart(scale: Scale) -> list[float]:
    """Ticks whose labels do not touch."""
    found: list[float] = []
    for value in scale.ticks():
        room = _LETTER * (len(tick(value)) + 1.5)
        if not found or scale(value) - scale(found[-1]) >= room:
            found.append(value)
    return found


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
