"""Figures and Markdown tables of a run of ``recipes/ments_trees.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from studies import cell
from torchrl_reg.lab.analysis.curves import Chart, Line, chart
from torchrl_reg.lab.analysis.plots import draw
from torchrl_reg.lab.analysis.runs import metrics_rows
from torchrl_reg.lab.analysis.statistics import mean_interval

LABELS = {"uct": "UCT", "puct": "PUCT", "ments": "MENTS", "rents": "RENTS", "tents": "TENTS"}


@dataclass(frozen=True)
class Searches:
    """The searches of a method on a kind of tree.

    Args:
        method: name of the method.
        branching: k.
        depth: d.
        noise: standard deviation of the rewards of leaves.
        simulations: numbers of simulations of the columns ``[N]``.
        value_error: distance of the root's value from the method's exact one ``[trees, N]``.
        max_error: distance from the unregularized value ``[trees, N]``.
        regret: value lost by the chosen action ``[trees, N]``.
    """

    method: str
    branching: int
    depth: int
    noise: float
    simulations: np.ndarray
    value_error: np.ndarray
    max_error: np.ndarray
    regret: np.ndarray

    @property
    def kind(self) -> tuple[int, int, float]:
        return self.branching, self.depth, self.noise


def read_searches(folder: Path) -> list[Searches]:
    """The searches of a run, in order.

    Raises:
        ValueError: the folder holds no run of the recipe with a finished kind of tree.
    """
    rows = [row for row in metrics_rows(folder, '"trees"') if row["event"] == "trees"]
    if not rows:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a run of ments_trees, got none with trees.")
    kind, found = ("method", "branching", "depth", "noise"), ("value_error", "max_error", "regret")
    arrays = [(np.array(row["simulations"]), *(np.array(row[name]).T for name in found)) for row in rows]
    return [Searches(*(row[name] for name in kind), *each) for row, each in zip(rows, arrays, strict=True)]


def draw_trees(folder: Path, path: Path, what: str = "value_error") -> Path:
    """Draws value errors or simple regrets minus those of the first method on the same trees, a point per kind of tree.

    Early (left) and at the end (right), means with 95% intervals over trees; methods below the dotted line are better
    than the first.

    Args:
        folder: the run folder.
        path: the file of the figure.
        what: ``"value_error"`` or ``"regret"``.

    Raises:
        ValueError: as :func:`read_searches`.
    """
    searches = read_searches(folder)
    found = [each for each in differences(searches) if each.what == what]
    name = {"value_error": "error of the root's value", "regret": "simple regret"}[what]
    y_label = f"{name} minus {LABELS[searches[0].method]}'s"
    shapes = list(dict.fromkeys(each.shape for each in found))
    charts: list[Chart | None] = []
    for count in dict.fromkeys(each.simulations for each in found):
        points: dict[str, list[tuple[float, ...]]] = {}
        for each in (each for each in found if each.simulations == count):
            points.setdefault(each.label, []).append((shapes.index(each.shape), *each.interval))
        lines = [
            Line(label, series, *(np.array(of) + [0.15 * series, 0, 0, 0]).T)
            for series, (label, of) in enumerate(points.items())
        ]
        ticks = [f"k={branching}, d={depth}" for branching, depth in shapes]
        charts.append(
            chart(
                f"after {count:,} simulations",
                lines,
                x_label="branching k and depth d of the trees",
                y_label="" if charts else y_label,
                ticks=ticks,
                level=0.0,
                joined=False,
            )
        )
    return draw(charts, path, columns=2)


def draw_bandit(folder: Path, path: Path) -> Path:
    """Draws ``t`` times the mean squared errors of ``U`` and of the softmax value, over the limit of the theorem.

    Raises:
        ValueError: the folder holds no run of the recipe with a bandit.
    """
    rows = [row for row in metrics_rows(folder, '"bandit"') if row["event"] == "bandit"]
    if not rows:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a run of ments_trees with its bandit, got none.")
    charts = []
    for name, title in (("u", "U, the sum of exp(r / tau)"), ("value", "the softmax value")):
        lines = []
        for series, row in enumerate(rows):
            share = np.array(row["time"]) * np.array(row[f"error_{name}"]) / row[f"limit_{name}"]
            label = "uniform" if row["epsilon"] > 1e6 else f"E2W, epsilon = {row['epsilon']:g}"
            lines.append(Line(label, series, np.array(row["time"]), share))
        span = (0.0, 1.05 * max(float(line.y.max()) for line in lines))
        charts.append(chart(title, lines, x_label="pulls t", log_x=True, span=span, level=1.0))
    return draw(charts, path, columns=2, y_label="t MSE / limit")


def trees_table(folder: Path) -> str:
    """Markdown table after the last simulation: means [95% intervals over trees], and differences from the first.

    The verdict compares a method's value error with that of the first method on the same trees: better or worse if the
    interval of the mean difference excludes 0.

    Raises:
        ValueError: as :func:`read_searches`.
    """
    heads = "k | d | noise | method | value error | error to the maximum | simple regret | value error against first"
    lines = [f"| {heads} |", "|---" * 8 + "|"]
    searches = read_searches(folder)
    for search in searches:
        first, verdict = _first(searches, search), "-"
        if search is not first:
            mean, low, high = mean_interval(search.value_error[:, -1] - first.value_error[:, -1])
            word = "better" if high < 0 else "worse" if low > 0 else "even"
            verdict = f"{word}, {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        cells = [cell(values[:, -1]) for values in (search.value_error, search.max_error, search.regret)]
        kind = f"{search.branching} | {search.depth} | {search.noise:g}"
        lines.append(f"| {kind} | {LABELS[search.method]} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def differences_table(folder: Path) -> str:
    """Markdown table of methods minus the first one on the same trees: after a twentieth of the simulations, and all.

    Means over trees with 95% intervals; bold if the interval excludes 0. Negative is better.

    Raises:
        ValueError: as :func:`read_searches`.
    """
    searches = read_searches(folder)
    cells: dict[tuple[int, int, float, str], list[Difference]] = {}
    for each in differences(searches):
        cells.setdefault((*each.shape, each.noise, each.method), []).append(each)
    heads = [
        f"{each.what.replace('_', ' ')}, {each.simulations} simulations" for each in next(iter(cells.values()), ())
    ]
    lines = [f"| k | d | noise | difference | {' | '.join(heads)} |", "|---" * 8 + "|"]
    for (branching, depth, noise, method), found in cells.items():
        kind = f"{branching} | {depth} | {noise:g} | {LABELS[method]} - {LABELS[searches[0].method]}"
        lines.append(f"| {kind} | {' | '.join(each.text for each in found)} |")
    return "\n".join(lines)


class Difference(NamedTuple):
    """A method minus the first one on the same trees, after ``simulations``: mean and ends of its 95% interval."""

    method: str
    shape: tuple[int, int]
    noise: float
    what: str
    simulations: int
    interval: tuple[float, float, float]

    @property
    def label(self) -> str:
        """The label of its line."""
        return f"{LABELS[self.method]}, noise {self.noise:g}"

    @property
    def text(self) -> str:
        """Mean and interval, in bold if the interval excludes 0."""
        mean, low, high = self.interval
        text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"**{text}**" if low > 0 or high < 0 else text


def differences(searches: list[Searches]) -> list[Difference]:
    """Differences of value errors and regrets from the first method, after a twentieth of the simulations, and all."""
    last = int(searches[0].simulations[-1])
    found = []
    for search in searches:
        if (first := _first(searches, search)) is search:
            continue
        for what in ("value_error", "regret"):
            values = getattr(search, what) - getattr(first, what)
            for count in (max(last // 20, 1), last):
                mean, low, high = mean_interval(values[:, search.simulations.searchsorted(count)]).tolist()
                shape = search.branching, search.depth
                found.append(Difference(search.method, shape, search.noise, what, count, (mean, low, high)))
    return found


def _first(searches: list[Searches], search: Searches) -> Searches:
    """The first search of the same kind of tree."""
    return next(each for each in searches if each.kind == search.kind)
