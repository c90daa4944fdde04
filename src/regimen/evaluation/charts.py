"""Small SVG charts, written by hand: lines over steps, and means with their intervals.

In: numbers. Out: `Markup` that stands inside an HTML page and takes its colours from the page's classes
(`s0` ... `s3`, `axis`, `grid`, `label`). No scripts and nothing from outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup, escape

from regimen.evaluation.records import Curve

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34
NUM_COLOURS = 4


class Axis(msgspec.Struct, frozen=True):
    """A scale from values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover `low` to `high`."""
    if high <= low:
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def axis_of(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that covers the values, between two pixels."""
    ticks = nice_ticks(min(values), max(values))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def line_chart(curve: Curve) -> Markup:
    """Lines over steps; a single point is a dot."""
    points = [point for series in curve.series for point in series.points]
    x_axis = axis_of([x for x, _ in points], LEFT, WIDTH - RIGHT)
    # There is no step 1.5.
    x_axis = msgspec.structs.replace(x_axis, ticks=[tick for tick in x_axis.ticks if tick.is_integer()])
    y_axis = axis_of([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x_axis, y_axis)]
    for index, series in enumerate(curve.series):
        colour = f"s{index % NUM_COLOURS}"
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in series.points)
        if len(series.points) == 1:
            x, y = path.split(",")
            parts.append(Markup('<circle class="{} dot" cx="{}" cy="{}" r="3.5"/>').format(colour, x, y))
        else:
            parts.append(Markup('<polyline class="{} line" points="{}"/>').format(colour, path))
    parts.append(Markup('<text class="label" x="{}" y="{}" text-anchor="end">step</text>').format(WIDTH - RIGHT, 236))
    return _svg(f"{curve.title} over steps", HEIGHT, parts)


def _grid(x_axis: Axis, y_axis: Axis) -> Markup:
    parts: list[Markup] = []
    for tick in y_axis.ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y=y_axis.at(tick)
            )
            + _label(LEFT - 6, y_axis.at(tick) + 4, f"{tick:g}", "end")
        )
    for tick in x_axis.ticks:
        parts.append(_label(x_axis.at(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    return Markup("").join(parts)


class IntervalRow(msgspec.Struct, frozen=True):
    """A labelled mean; an interval of None is drawn as a dot alone."""

    label: str
    mean: float
    low: float | None
    high: float | None


def interval_plot(rows: Sequence[IntervalRow], *, is_unit: bool, title: str) -> Markup:
    """One line per row: a dot at the mean, whiskers to the ends of the interval. `is_unit` fixes the axis to 0-1."""
    values = [value for row in rows for value in (row.mean, row.low, row.high) if value is not None]
    left = 20 + min(180, 7 * max(len(row.label) for row in rows))
    axis = axis_of([0.0, 1.0] if is_unit else values, left, WIDTH - RIGHT)
    height = 34 * len(rows) + 30
    parts: list[Markup] = []
    for tick in axis.ticks:
        line = Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{}"/>').format(
            height - 24, x=axis.at(tick)
        )
        parts.append(line + _label(axis.at(tick), height - 8, f"{tick:g}", "middle"))
    for index, row in enumerate(rows):
        parts.append(_interval_row(row, axis, 22 + 34 * index, index))
    return _svg(title, height, parts)


def _interval_row(row: IntervalRow, axis: Axis, y: float, index: int) -> Markup:
    colour = f"s{index % NUM_COLOURS}"
    short = row.label if len(row.label) <= 26 else row.label[:25] + "…"
    parts = [_label(axis.start - 10, y + 4, short, "end")]
    if row.low is not None and row.high is not None:
        whiskers = Markup(
            '<path class="{} line" d="M{low:.1f},{top} v10 M{high:.1f},{top} v10 M{low:.1f},{y} H{high:.1f}"/>'
        )
        parts.append(whiskers.format(colour, low=axis.at(row.low), high=axis.at(row.high), top=y - 5, y=y))
    parts.append(Markup('<circle class="{} dot" cx="{:.1f}" cy="{}" r="4.5"/>').format(colour, axis.at(row.mean), y))
    return Markup("").join(parts)


def _label(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(title: str, height: int, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, escape(title))
    return opening + Markup("").join(parts) + Markup("</svg>")
