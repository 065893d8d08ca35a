"""Charts as inline SVG: a frame with two axes, and what is drawn into it.

Text and lines take the page's colour, so that a chart reads on a light ground and on a dark one. Series
differ in colour (after Paul Tol's bright scheme, told apart in every form of colour blindness) and in the
shape of their marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#bb9911", "#33aacc", "#aa3377", "#888888")

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_LINE = 20  # of a legend
_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar")
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        label: what it shows, with its unit.
        low, high: the range.
        ticks: the values that are written beside it.
        form: how a value is written.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    form: Callable[[float], str]

    @classmethod
    def to(
        cls, label: str, high: float, form: Callable[[float], str], *, low: float = 0, count: int = 5
    ) -> Axis:
        """From `low` to a round number at or above `high`, with about `count` round ticks."""
        step = _round_step((high - low) / count) if high > low else 1.0
        last = math.ceil((high - low) / step - 1e-9) or 1
        return cls(label, low, low + last * step, tuple(low + i * step for i in range(last + 1)), form)

    @classmethod
    def of_numbers(cls, label: str, count: int) -> Axis:
        """The whole numbers from 0 to count - 1, with room at the ends."""
        step = max(1, int(_round_step(max(count - 1, 1) / 12)))
        return cls(label, -0.5, count - 0.5, tuple(range(0, count, step)), lambda value: f"{value:.0f}")


def percent(value: float) -> str:
    """0.0125 as 1.25%; no more digits than it needs."""
    return f"{100 * value:.4g}%"


def lines(
    x: Axis, y: Axis, series: Mapping[str, Sequence[tuple[float, float]]], *, size: tuple[int, int]
) -> str:
    """Points joined by lines, with a legend; one series a name."""
    frame = _Frame(x, y, size)
    marks = []
    for number, (name, points) in enumerate(series.items()):
        colour, shape = COLOURS[number % len(COLOURS)], _SHAPES[number % len(_SHAPES)]
        places = [(frame.x(across), frame.y(up)) for across, up in points]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        drawn = [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.7"/>'
        ]
        for (across, up), value in zip(places, points, strict=True):
            title = f"{name}, {x.label} {x.form(value[0])}: {y.form(value[1])}"
            drawn.append(f"<g><title>{escape(title)}</title>{_mark(shape, across, up, colour)}</g>")
        marks.append("".join(drawn))
    return frame.svg("".join(marks), legend=list(series))


def bars(x: Axis, y: Axis, heights: Sequence[tuple[float, float, float]], *, size: tuple[int, int]) -> str:
    """A histogram: (left end, right end, height) of each bar."""
    frame = _Frame(x, y, size)
    drawn = []
    for low, high, height in heights:
        left, right, top = frame.x(low), frame.x(high), frame.y(height)
        title = escape(f"{x.form(low)} to {x.form(high)}: {y.form(height)}")
        drawn.append(
            f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{max(right - left - 2, 1):.1f}" '
            f'height="{frame.y(0) - top:.1f}" fill="{COLOURS[0]}"><title>{title}</title></rect>'
        )
    return frame.svg("".join(drawn))


def histogram(
    values: Sequence[float], low: float, high: float, count: int
) -> list[tuple[float, float, float]]:
    """How many values lie in each of `count` equal parts of the range, for `bars`; ends included."""
    width = (high - low) / count
    found = [0] * count
    for value in values:
        found[min(max(int((value - low) / width), 0), count - 1)] += 1
    return [(low + i * width, low + (i + 1) * width, float(n)) for i, n in enumerate(found)]


def shares(parts: Mapping[str, float], form: Callable[[float], str], *, width: int) -> str:
    """Horizontal bars, one a part, with its name, its size and its share."""
    total, largest = sum(parts.values()) or 1, max(parts.values(), default=1) or 1
    label, row = 300, 26
    drawn = []
    for number, (name, value) in enumerate(parts.items()):
        top, long = number * row, (width - label - 150) * value / largest
        drawn.append(
            f'<text x="{label - 10}" y="{top + 17}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{label}" y="{top + 4}" width="{max(long, 1):.1f}" height="{row - 8}" '
            f'fill="{COLOURS[0]}"/><text x="{label + long + 8:.1f}" y="{top + 17}">'
            f"{form(value)}, {percent(round(value / total, 3))}</text>"
        )
    return _svg(width, row * len(parts) or 1, "".join(drawn))


class _Frame:
    """Where values lie in a chart of `size` pixels, and the axes around them."""

    def __init__(self, x: Axis, y: Axis, size: tuple[int, int]) -> None:
        self._x, self._y = x, y
        self._width, self._height = size

    def x(self, value: float) -> float:
        part = (value - self._x.low) / (self._x.high - self._x.low)
        return _LEFT + part * (self._width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (value - self._y.low) / (self._y.high - self._y.low)
        return self._height - _BOTTOM - part * (self._height - _TOP - _BOTTOM)

    def svg(self, inside: str, legend: Sequence[str] = ()) -> str:
        """The whole chart; the legend goes below it."""
        left, right = _LEFT, self._width - _RIGHT
        bottom = self._height - _BOTTOM
        drawn = []
        for tick in self._y.ticks:
            up = self.y(tick)
            drawn.append(
                f'<line x1="{left}" x2="{right}" y1="{up:.1f}" y2="{up:.1f}" class="grid"/>'
                f'<text x="{left - 8}" y="{up + 4:.1f}" text-anchor="end">{self._y.form(tick)}</text>'
            )
        for tick in self._x.ticks:
            across = self.x(tick)
            drawn.append(
                f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>'
                f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{self._x.form(tick)}</text>'
            )
        middle = (_TOP + bottom) / 2
        drawn.append(
            f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>'
            f'<text x="{(left + right) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">'
            f"{escape(self._x.label)}</text>"
            f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._y.label)}</text>"
        )
        names, height = self._legend(legend)
        return _svg(self._width, height, "".join(drawn) + inside + names)

    def _legend(self, names: Sequence[str]) -> tuple[str, int]:
        """The names with their marks, in as many lines as they need, and the height of the whole."""
        drawn, across, height = [], float(_LEFT), self._height
        for number, name in enumerate(names):
            wide = 40 + 7.2 * len(name)
            if across > _LEFT and across + wide > self._width:
                across, height = float(_LEFT), height + _LINE
            mark = _mark(
                _SHAPES[number % len(_SHAPES)], across + 6, height + 8, COLOURS[number % len(COLOURS)]
            )
            drawn.append(f'{mark}<text x="{across + 16:.0f}" y="{height + 12}">{escape(name)}</text>')
            across += wide
        return "".join(drawn), height + (24 if names else 0)


def _mark(shape: str, x: float, y: float, colour: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if shape == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="none" stroke="{colour}" stroke-width="2"/>'
    if shape == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'
    if shape == "bar":
        return f'<rect x="{x - 5:.1f}" y="{y - 1.5:.1f}" width="10" height="3" fill="{colour}"/>'
    if shape == "cross":
        path = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path d="{path}" stroke="{colour}" stroke-width="2" fill="none"/>'
    corners = "l4.5 8h-9z" if shape == "triangle" else "l4.5 4.5l-4.5 4.5l-4.5 -4.5z"
    return f'<path d="M{x:.1f} {y - 4.5:.1f}{corners}" fill="{colour}"/>'


def _svg(width: int, height: int, inside: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{inside}</svg>'


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))
