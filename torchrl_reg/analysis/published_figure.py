"""A figure of published scores and ours (:func:`~torchrl_reg.analysis.protocols.gaps`), green where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from torchrl_reg.analysis.charts import GREY, LIGHT
from torchrl_reg.analysis.plots import add_legend, new_figure, save, styled
from torchrl_reg.analysis.protocols import Gap

#: Ours where it meets every published score of its protocol, where it does not, and where nobody published one.
_MEETS, _MISSES, _ALONE = LIGHT[2], LIGHT[1], LIGHT[0]


def draw_published(found: Sequence[Gap], path: Path) -> Path:
    """A panel an environment, a row a method: ours with its 95% interval, published means ± spread below it in grey.

    Published scores under another protocol are left out. Returns are undiscounted, in reward units.

    Raises:
        AnalysisError: as :func:`~torchrl_reg.analysis.plots.save`.
    """
    rows: dict[str, dict[str, list[Gap]]] = {}
    for each in found:
        if len(each.scores.values):
            group = each.scores.group
            rows.setdefault(group.env, {}).setdefault(group.method, []).append(each)
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    most = max(map(len, rows.values()))
    figure = new_figure(3.1 * columns, lines * (0.75 + 0.42 * most))
    for place, (env, methods) in enumerate(rows.items(), 1):
        axes = styled(figure.add_subplot(lines, columns, place))
        axes.set_title(env, fontsize=9, loc="left")
        axes.set_yticks(range(len(methods)), list(methods))
        axes.set_ylim(len(methods) - 0.3, -0.7)
        for row, gaps in enumerate(methods.values()):
            _draw_row(axes, row, gaps)
    figure.supxlabel("return", fontsize=9)
    looks = {"ours, meets": _MEETS, "ours, does not": _MISSES, "ours, none published": _ALONE, "published": GREY}
    add_legend(figure, {label: {"color": color} for label, color in looks.items()})
    return save(figure, path)


def _draw_row(axes: Axes, row: int, gaps: Sequence[Gap]) -> None:
    same = [gap for gap in gaps if gap.difference is not None]
    color = _ALONE if not same else _MEETS if all(gap.meets for gap in same) else _MISSES
    look: dict[str, Any] = {"fmt": "o", "markersize": 4, "linewidth": 2, "clip_on": False}
    ours = gaps[0].ours
    ends = [[ours.value - ours.low], [ours.high - ours.value]]
    axes.errorbar(ours.value, row - 0.12, xerr=ends, color=color, **look)
    for below, gap in enumerate(same, 1):
        assert gap.published is not None
        look |= {"markerfacecolor": "white", "linewidth": 1.2}
        axes.errorbar(gap.published.mean, row + 0.16 * below, xerr=gap.published.spread or 0, color=GREY, **look)
