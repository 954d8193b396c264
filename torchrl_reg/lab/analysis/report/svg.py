"""Charts as HTML: a stretched SVG, labels of fixed size, and data for the hover read-out.

Coordinates of the SVG run over 1000 x 1000 and are stretched to the plot; strokes keep their width (``vector-effect``),
and dots are strokes of zero length with round ends.
"""

from __future__ import annotations

from torchrl_reg.lab.analysis.curves import Chart, Line
from torchrl_reg.lab.analysis.numbers import amount, distinct, number
from torchrl_reg.lab.analysis.statistics import Array


def drawing(chart: Chart) -> dict[str, object]:
    """The context of the chart template: ticks, paths and data."""
    x, y = chart.x.ticks(3 if chart.small else 5), chart.y.ticks(4 if chart.small else 5)
    x_ticks = enumerate(chart.ticks) if chart.ticks else zip(x, distinct(x, amount), strict=True)
    return {
        "y_ticks": [
            (float(100 - 100 * chart.y.place(at)), text) for at, text in zip(y, distinct(y, number), strict=True)
        ],
        "x_ticks": [(float(100 * chart.x.place(at)), text) for at, text in x_ticks],
        "drawn": [(line.series, _paths(line, chart)) for line in chart.lines],
        "data": {
            "x": [chart.x.low, chart.x.high],
            "xLabel": chart.x_label,
            "ticks": chart.ticks,
            "lines": [_values(line) for line in chart.lines],
        },
    }


def coordinate(value: float) -> str:
    """A coordinate in an SVG, to one decimal."""
    return f"{float(value):.1f}".removesuffix(".0")


def _paths(line: Line, chart: Chart) -> list[tuple[str, str]]:
    """The SVG paths of a line as (CSS class, path): interval, line, dots, continuation."""
    parts = []
    places = _points(line.x, line.y, chart)
    if line.low is not None and line.high is not None and len(line.x):
        upper, lower = _points(line.x, line.high, chart), _points(line.x, line.low, chart)
        if chart.ticks is not None:
            parts += [("bar", f"M{a}L{b}") for a, b in zip(lower, upper, strict=True)]
        elif len(line.x) > 1:
            parts.append(("band", f"M{'L'.join(upper + lower[::-1])}Z"))
    if len(line.x) > 1:
        parts.append(("line", f"M{'L'.join(places)}"))
    if len(line.x) and chart.dotted(line):
        parts.append(("dot", "".join(f"M{place}h0" for place in places)))
    if len(line.more_x):
        parts.append(("line more", f"M{'L'.join(places[-1:] + _points(line.more_x, line.more_y, chart))}"))
    return parts


def _points(x: Array, y: Array, chart: Chart) -> list[str]:
    places = zip(1000 * chart.x.place(x), 1000 * (1 - chart.y.place(y)), strict=True)
    return [f"{coordinate(a)} {coordinate(b)}" for a, b in places]


def _values(line: Line) -> dict[str, object]:
    sides = {"x": [*line.x, *line.more_x], "y": [*line.y, *line.more_y], "low": line.low, "high": line.high}
    rounded = {name: None if v is None else [float(f"{value:.5g}") for value in v] for name, v in sides.items()}
    return {"s": line.series, "label": line.label, **rounded}
