"""A run of ``recipes/ments_trees.py`` as figures and as Markdown tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchrl_reg.analysis.colors import GREY, LIGHT
from torchrl_reg.analysis.plots import add_legend, new_figure, styles
from torchrl_reg.analysis.record import metrics_rows
from torchrl_reg.analysis.statistics import mean_interval
from torchrl_reg.studies import cell, draw_band, plain

LABELS = {"uct": "UCT", "puct": "PUCT", "ments": "MENTS", "rents": "RENTS", "tents": "TENTS"}


@dataclass(frozen=True)
class Searches:
    """All searches of one method on one kind of tree.

    Args:
        method: its name.
        branching: k.
        depth: d.
        noise: standard deviation of a leaf's reward.
        simulations: when the columns were recorded ``[N]``.
        value_error: distance of the root's value from the method's own exact one ``[trees, N]``.
        max_error: distance from the unregularized value ``[trees, N]``.
        regret: value lost by the action chosen ``[trees, N]``.
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
    """The searches of a run, in its order.

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
    """Draws value errors or simple regrets against simulations: a row per branching, a column per depth and noise.

    Means with a 95% interval over the trees.

    Args:
        folder: of the run.
        path: where the figure goes.
        what: ``"value_error"`` or ``"regret"``.

    Raises:
        ValueError: as :func:`read_searches`.
    """
    searches = read_searches(folder)
    looks = styles(list(dict.fromkeys(s.method for s in searches)))
    rows = list(dict.fromkeys(s.branching for s in searches))
    columns = list(dict.fromkeys((s.depth, s.noise) for s in searches))
    figure = new_figure(1.7 * len(columns) + 0.8, 1.5 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for axis in axes.flat:
        axis.set(xscale="log", yscale="log" if what == "value_error" else "linear")
    for search in searches:
        axis = axes[rows.index(search.branching), columns.index((search.depth, search.noise))]
        draw_band(axis, search.simulations, getattr(search, what), looks[search.method])
    for (depth, noise), axis in zip(columns, axes[0], strict=True):
        axis.set_title(f"d = {depth}, noise {noise:g}", fontsize=9, loc="left")
    for branching, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(f"k = {branching}", fontsize=9)
    figure.supxlabel("simulations", fontsize=9)
    title = {"value_error": "error of the root's value", "regret": "simple regret"}[what]
    figure.supylabel(f"{title}, mean of {len(searches[0].regret)} trees", fontsize=9)
    add_legend(figure, {LABELS[method]: look for method, look in looks.items()})
    figure.savefig(path, dpi=100)
    return path


def draw_bandit(folder: Path, path: Path) -> Path:
    """Draws ``t`` times the mean squared errors of ``U`` and of the softmax value, as a share of the theorem's limit.

    Raises:
        ValueError: the folder holds no run of the recipe with its bandit.
    """
    rows = [row for row in metrics_rows(folder, '"bandit"') if row["event"] == "bandit"]
    if not rows:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a run of ments_trees with its bandit, got none.")
    figure = new_figure(7.2, 3.0)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, title in ((axes[0], "u", "U, the sum of exp(r / tau)"), (axes[1], "value", "the softmax value")):
        for row, color in zip(rows, (LIGHT[1], LIGHT[0]), strict=False):
            share = np.array(row["time"]) * np.array(row[f"error_{name}"]) / row[f"limit_{name}"]
            label = "uniform" if row["epsilon"] > 1e6 else f"E2W, epsilon = {row['epsilon']:g}"
            axis.plot(row["time"], share, color=color, linewidth=1.4, label=label)
        axis.axhline(1, color=GREY, linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xscale("log")
        axis.set_xlabel("pulls t", fontsize=9)
        plain(axis)
    axes[0].set_ylabel("t MSE / limit", fontsize=9)
    axes[0].set_ylim(bottom=0)
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    return path


def trees_table(folder: Path) -> str:
    """Markdown table of the last number of simulations: mean [95% interval over trees], and by pairs against the first.

    The verdict compares a method's value error with that of the first method on the same trees: better or worse where
    the interval of the mean difference leaves out 0.

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
    """Markdown table of every method minus the first one, on the same trees: early (a twentieth) and at the end.

    Means over the trees with 95% intervals; bold where the interval leaves out 0. Negative is better.

    Raises:
        ValueError: as :func:`read_searches`.
    """
    searches = read_searches(folder)
    last = int(searches[0].simulations[-1])
    early = max(last // 20, 1)
    heads = [f"{what}, {count} simulations" for what in ("value error", "regret") for count in (early, last)]
    lines = [f"| k | d | noise | difference | {' | '.join(heads)} |", "|---" * 8 + "|"]
    for search in searches:
        first = _first(searches, search)
        if search is first:
            continue
        cells = []
        for what in ("value_error", "regret"):
            difference = getattr(search, what) - getattr(first, what)
            cells += [_difference(difference[:, search.simulations.searchsorted(count)]) for count in (early, last)]
        kind = f"{search.branching} | {search.depth} | {search.noise:g}"
        lines.append(f"| {kind} | {LABELS[search.method]} - {LABELS[first.method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _first(searches: list[Searches], search: Searches) -> Searches:
    """The first search of the same kind of tree."""
    return next(each for each in searches if each.kind == search.kind)


def _difference(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
