"""Line charts as HTML: an SVG that stretches with its place, labels that keep their size, data for the hover read-out.

The SVG's coordinates run over 1000 x 1000 and are stretched to the plot; strokes keep their width
(``vector-effect``), and dots are strokes of no length with round ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Colours in the stylesheet; a series beyond them repeats a colour with other dashes.
COLORS = 10


def _nothing() -> Array:
    return np.zeros(0)


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
    more_x: Array = field(default_factory=_nothing)
    more_y: Array = field(default_factory=_nothing)


@dataclass(frozen=True)
class Axes:
    """Limits and ticks of a chart; ``ticks`` of x are places and their texts, or None for numbers."""

    left: float
    right: float
    low: float
    high: float
    log: bool = False
    ticks: tuple[tuple[float, str], ...] | None = None

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
    lines: Sequence[Line],
    *,
    note: str = "",
    small: bool = False,
    x_label: str = "frames",
    ticks: Sequence[tuple[float, str]] | None = None,
    dots: bool = False,
    may_log: bool = False,
    span: tuple[float, float] | None = None,
) -> str:
    """A ``<figure>`` with the ``lines``; empty where there is nothing to draw.

    Args:
        title, note: above it, the note in grey.
        small: one of many.
        x_label: below it.
        ticks: places and texts below it instead of numbers.
        dots: marks every point.
        may_log: a logarithmic axis where values are positive and span three orders of magnitude.
        span: lowest and highest value to show, instead of those of the lines.
    """
    lines = [line for line in map(_finite, lines) if len(line.x) or len(line.more_x)]
    if not lines:
        return ""
    axes = _axes(lines, ticks, may_log, span)
    y_ticks = _log_ticks(axes.low, axes.high) if axes.log else nice_ticks(axes.low, axes.high, 4 if small else 5)
    x_ticks = axes.ticks or [(tick, amount(tick)) for tick in nice_ticks(axes.left, axes.right, 3 if small else 5)]
    across = "".join(f'<path class="grid" d="M0 {_n(axes.y(np.array(tick)))}H1000"/>' for tick in y_ticks)
    drawn = "".join(_svg_line(line, axes, dots=dots) for line in lines)
    left = "".join(f'<span style="top:{axes.y(np.array(tick)) / 10:.2f}%">{number(tick)}</span>' for tick in y_ticks)
    below = "".join(
        f'<span style="left:{axes.x(np.array(tick)) / 10:.2f}%">{escape(text)}</span>' for tick, text in x_ticks
    )
    scale = " (log scale)" if axes.log else ""
    return (
        f'<figure class="chart{" small" if small else ""}">'
        f"<figcaption>{escape(title)} <small>{escape(note + scale)}</small></figcaption>"
        f'<div class="plot"><div class="y-labels">{left}</div><div class="area">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'{across}{drawn}</svg></div><div class="x-labels">{below}</div>'
        f'<div class="x-title">{escape(x_label)}</div></div>{_data(lines, axes, x_label)}</figure>'
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers within ``[low, high]``.

    >>> nice_ticks(0, 100, 5), nice_ticks(-1.2, 0.4, 4)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [-1.0, -0.5, 0.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def number(value: float) -> str:
    """A value in few characters, with a minus sign.

    >>> number(-1234.5), number(0.25), number(0.000012), number(2_500_000)
    ('−1.23k', '0.25', '1.2e-5', '2.5M')
    """
    size = abs(value)
    if size >= 1000:
        text = amount(size)
    elif size and size < 0.001:
        digits, _, exponent = f"{size:.2g}".replace("e-0", "e-").partition("e")
        text = f"{digits}e{exponent}" if exponent else digits
    else:
        text = f"{size:.3g}"
    return f"−{text}" if value < 0 else text


def amount(value: float) -> str:
    """Thousands, millions and billions by letter.

    >>> amount(0), amount(1500), amount(200_000_000)
    ('0', '1.5k', '200M')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _axes(
    lines: Sequence[Line], ticks: Sequence[tuple[float, str]] | None, may_log: bool, span: tuple[float, float] | None
) -> Axes:
    x = np.concatenate([part for line in lines for part in (line.x, line.more_x)])
    y = np.concatenate(
        [part for line in lines for part in (line.y, line.more_y, line.low, line.high) if part is not None]
    )
    left, right = float(x.min()), float(x.max())
    low, high = span or (float(y.min()), float(y.max()))
    if ticks is not None:
        left, right = min(t for t, _ in ticks) - 0.4, max(t for t, _ in ticks) + 0.4
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
    return Axes(left, right, low, high, log, tuple(ticks) if ticks is not None else None)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = max(1, len(powers) // 4)
    return [10.0**power for power in powers if power % step == 0]


def _svg_line(line: Line, axes: Axes, *, dots: bool) -> str:
    parts = []
    if line.low is not None and line.high is not None and len(line.x):
        upper = _points(line.x, line.high, axes)
        lower = _points(line.x[::-1], line.low[::-1], axes)
        shape = "M" + upper + "L" + lower + "Z" if len(line.x) > 1 else ""
        if dots:
            parts += [f'<path class="bar" d="M{a}L{b}"/>' for a, b in _ends(line, axes)]
        elif shape:
            parts.append(f'<path class="band" d="{shape}"/>')
    if len(line.x) > 1:
        parts.append(f'<path class="line" d="M{_points(line.x, line.y, axes)}"/>')
    if len(line.x) and (dots or len(line.x) == 1 or 1 < len(line.x) + len(line.more_x) <= 12):
        places = _points(line.x, line.y, axes).split("L")
        parts.append(f'<path class="dot" d="{"".join(f"M{place}h0" for place in places)}"/>')
    if len(line.more_x):
        x, y = np.concatenate((line.x[-1:], line.more_x)), np.concatenate((line.y[-1:], line.more_y))
        parts.append(f'<path class="line more" d="M{_points(x, y, axes)}"/>')
    return f'<g class="{series_class(line.series)}" data-s="{line.series}">{"".join(parts)}</g>'


def series_class(series: int) -> str:
    """Colour and, from the second round of colours on, dashes of a series."""
    dashes = f" d{min(series // COLORS, 3)}" if series >= COLORS else ""
    return f"s{series % COLORS}{dashes}"


def _ends(line: Line, axes: Axes) -> list[tuple[str, str]]:
    assert line.low is not None and line.high is not None
    low, high = (_points(line.x, side, axes).split("L") for side in (line.low, line.high))
    return list(zip(low, high, strict=True))


def _points(x: Array, y: Array, axes: Axes) -> str:
    return "L".join(f"{_n(a)} {_n(b)}" for a, b in zip(axes.x(x), axes.y(y), strict=True))


def _n(value: float | Array) -> str:
    return f"{float(value):.1f}".removesuffix(".0")


def _data(lines: Sequence[Line], axes: Axes, x_label: str) -> str:
    """What the read-out needs, as JSON in the page."""

    def numbers(values: Array | None) -> list[float] | None:
        return None if values is None else [float(f"{value:.5g}") for value in values]

    content = {
        "x": [axes.left, axes.right],
        "xLabel": x_label,
        "ticks": [text for _, text in axes.ticks] if axes.ticks else None,
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
    # "</script>" in a label would end the element.
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _finite(line: Line) -> Line:
    """The line without points that are not finite numbers."""
    keep, more = np.isfinite(line.x) & np.isfinite(line.y), np.isfinite(line.more_x) & np.isfinite(line.more_y)
    if keep.all() and more.all():
        return line
    low, high = (side if side is None else side[keep] for side in (line.low, line.high))
    return Line(line.label, line.series, line.x[keep], line.y[keep], low, high, line.more_x[more], line.more_y[more])
