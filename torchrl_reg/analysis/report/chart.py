"""Line charts as HTML: an SVG that stretches to fit, labels that keep their size, data for the hover read-out.

The SVG's coordinates run over 1000 x 1000 and are stretched to the plot; strokes keep their width
(``vector-effect``), and dots are strokes of no length with round ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from torchrl_reg.analysis.numbers import amount, number
from torchrl_reg.analysis.report.page import coordinate, filled
from torchrl_reg.analysis.statistics import Array


@dataclass(frozen=True)
class Line:
    """One series: ``y`` over ``x``, with an interval or without, and a part fewer runs reached.

    Args:
        label: in the read-out.
        series: its colour, and what the legend's buttons toggle.
        low, high: ends of an interval, or None.
        more_x, more_y: continued dashed.
    """

    label: str
    series: int
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    more_x: Array = field(default_factory=lambda: np.zeros(0))
    more_y: Array = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Axes:
    """Limits of a chart; ``ticks`` are the texts at 0, 1, ... of x, or None for numbers."""

    left: float
    right: float
    low: float
    high: float
    log: bool = False
    ticks: Sequence[str] | None = None

    def x(self, values: Array) -> Array:
        """Places in [0, 1000] from the left."""
        return (values - self.left) / (self.right - self.left) * 1000

    def y(self, values: Array) -> Array:
        """Places in [0, 1000] from the top."""
        low, high = self._scale(np.array([self.low, self.high]))
        return (1 - (self._scale(values) - low) / (high - low)) * 1000

    def _scale(self, values: Array) -> Array:
        return np.log10(np.maximum(values, 1e-300)) if self.log else values


def line_chart(
    title: str,
    found: Sequence[Line | None],
    *,
    note: str = "",
    small: bool = False,
    x_label: str = "frames",
    ticks: Sequence[str] | None = None,
    may_log: bool = False,
    span: tuple[float, float] | None = None,
) -> str:
    """A ``<figure>`` with the lines ``found``; empty where there is nothing to draw.

    Args:
        title, note: above it, the note in grey.
        small: one of many.
        x_label: below it.
        ticks: texts below it at 0, 1, ... instead of numbers; every point is then marked by a dot.
        may_log: a logarithmic axis where values are positive and span three orders of magnitude.
        span: lowest and highest value to show, instead of those of the lines.
    """
    lines = [line for line in map(_finite, filter(None, found)) if len(line.x) or len(line.more_x)]
    if not lines:
        return ""
    axes = _axes(lines, ticks, may_log, span)
    y_ticks = _round_numbers(axes.low, axes.high, 4 if small else 5, log=axes.log)
    x_numbers = _round_numbers(axes.left, axes.right, 3 if small else 5)
    x_ticks = enumerate(ticks) if ticks else ((tick, amount(tick)) for tick in x_numbers)
    return filled(
        "chart.html",
        title=title,
        note=note,
        small=small,
        axes=axes,
        x_label=x_label,
        y_ticks=[(float(axes.y(np.array(tick))) / 10, number(tick)) for tick in y_ticks],
        x_ticks=[(float(axes.x(np.array(tick))) / 10, text) for tick, text in x_ticks],
        drawn=[(line.series, _paths(line, axes)) for line in lines],
        data=_data(lines, axes, x_label),
    )


def _round_numbers(low: float, high: float, count: int, *, log: bool = False) -> list[float]:
    """About ``count`` ticks within ``[low, high]``."""
    locator = LogLocator(numticks=5) if log else MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def _axes(lines: Sequence[Line], ticks: Sequence[str] | None, may_log: bool, span: tuple[float, float] | None) -> Axes:
    x = np.concatenate([part for line in lines for part in (line.x, line.more_x)])
    y = np.concatenate(
        [part for line in lines for part in (line.y, line.more_y, line.low, line.high) if part is not None]
    )
    left, right = float(x.min()), float(x.max())
    low, high = span or (float(y.min()), float(y.max()))
    if ticks is not None:
        left, right = -0.4, len(ticks) - 1 + 0.4
    elif left > 0 and left < 0.4 * right:
        left = 0.0
    if right <= left:  # a single frame
        left, right = min(0.0, 1.25 * left), max(1.25 * right, 1.0)
    log = may_log and low > 0 and high / low >= 1000
    if log:
        low, high = low / 1.3, high * 1.3
    elif span is None:
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return Axes(left, right, low, high, log, ticks)


def _paths(line: Line, axes: Axes) -> list[tuple[str, str]]:
    """Kind and course of the paths of a line: its interval, itself, its dots, its dashed rest."""
    parts, dots = [], axes.ticks is not None
    places = _points(line.x, line.y, axes)
    if line.low is not None and line.high is not None and len(line.x):
        upper, lower = _points(line.x, line.high, axes), _points(line.x, line.low, axes)
        if dots:
            parts += [("bar", f"M{a}L{b}") for a, b in zip(lower, upper, strict=True)]
        elif len(line.x) > 1:
            parts.append(("band", f"M{'L'.join(upper + lower[::-1])}Z"))
    if len(line.x) > 1:
        parts.append(("line", f"M{'L'.join(places)}"))
    if len(line.x) and (dots or len(line.x) == 1 or 1 < len(line.x) + len(line.more_x) <= 12):
        parts.append(("dot", "".join(f"M{place}h0" for place in places)))
    if len(line.more_x):
        parts.append(("line more", f"M{'L'.join(places[-1:] + _points(line.more_x, line.more_y, axes))}"))
    return parts


def _points(x: Array, y: Array, axes: Axes) -> list[str]:
    return [f"{coordinate(a)} {coordinate(b)}" for a, b in zip(axes.x(x), axes.y(y), strict=True)]


def _data(lines: Sequence[Line], axes: Axes, x_label: str) -> dict[str, Any]:
    """What the read-out needs, for the page to hold as JSON."""

    def numbers(values: Array | None) -> list[float] | None:
        return None if values is None else [float(f"{value:.5g}") for value in values]

    return {
        "x": [axes.left, axes.right],
        "xLabel": x_label,
        "ticks": axes.ticks,
        "lines": [
            {
                "s": line.series,
                "label": line.label,
                "x": numbers(np.concatenate((line.x, line.more_x))),
                "y": numbers(np.concatenate((line.y, line.more_y))),
                "low": numbers(line.low),
                "high": numbers(line.high),
            }
            for line in lines
        ],
    }


def _finite(line: Line) -> Line:
    """The line without points that are not finite numbers."""
    keep, more = np.isfinite(line.x) & np.isfinite(line.y), np.isfinite(line.more_x) & np.isfinite(line.more_y)
    low, high = (side if side is None else side[keep] for side in (line.low, line.high))
    rest_x, rest_y = line.more_x[more], line.more_y[more]
    return replace(line, x=line.x[keep], y=line.y[keep], low=low, high=high, more_x=rest_x, more_y=rest_y)
