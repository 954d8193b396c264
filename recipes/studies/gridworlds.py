"""Learning curves, a figure of the learnt priors and a Markdown table of a run of ``recipes/mirl_grid.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from studies import cell
from torchrl_reg.lab.analysis.curves import LIGHT, Line, chart
from torchrl_reg.lab.analysis.plots import draw, new_figure, save, styled
from torchrl_reg.lab.analysis.runs import metrics_rows
from torchrl_reg.lab.analysis.statistics import mean_interval

LABELS = {"ql": "Q-learning", "sql": "SQL", "sql_m": "SQL_m", "mirl": "MIRL"}
#: A world is solved by a greedy return within this of the optimum, in reward units.
SOLVED_WITHIN = 0.5
#: Consecutive evaluations that must solve it: an unfinished policy may solve a world once, by chance.
SOLVED_FOR = 3

_SERIES = list(LABELS)
_MIRL = LIGHT[_SERIES.index("mirl")]
_ARROWS = ((0, -1), (1, 0), (0, 1), (-1, 0))  # (right, down) of up, right, down, left
_ACTIONS = ("up", "right", "down", "left")


@dataclass(frozen=True)
class WorldRun:
    """The results of all agents in a world.

    Args:
        name: the world.
        layout: its map, as :func:`torchrl_reg.tabular.gridworld` reads it.
        optimal_return: expected return of an optimal policy.
        frames: environment frames of each agent at the evaluations ``[T]``.
        returns: by method, the expected returns of the greedy policies ``[seeds, T]``.
        rewards: by method, the mean rewards per step since the previous evaluation ``[seeds, T]``.
        last: the row of the final priors and policies.
    """

    name: str
    layout: list[str]
    optimal_return: float
    frames: np.ndarray
    returns: dict[str, np.ndarray]
    rewards: dict[str, np.ndarray]
    last: dict[str, Any]

    def frames_to_solve(self, method: str) -> np.ndarray:
        """Frames ``[seeds]`` at the first of ``SOLVED_FOR`` consecutive evaluations that solve it, or infinity."""
        solved = self.returns[method] >= self.optimal_return - SOLVED_WITHIN
        if solved.shape[1] < SOLVED_FOR:
            return np.full(len(solved), np.inf)
        held = np.asarray(np.lib.stride_tricks.sliding_window_view(solved, SOLVED_FOR, axis=1).all(-1))
        return np.where(held.any(1), self.frames[held.argmax(1)], np.inf)


def read_worlds(folder: Path) -> list[WorldRun]:
    """The worlds of a finished run, in order.

    Raises:
        ValueError: the folder holds no finished run of the recipe.
    """
    rows = list(metrics_rows(folder))
    worlds = []
    for last in (row for row in rows if row["event"] == "final"):
        name = last["world"]
        start = next(row for row in rows if row["event"] == "world" and row["world"] == name)
        evaluations = [row for row in rows if row["event"] == "eval" and row["world"] == name]
        methods = list(last["prior"])
        returns = {m: np.array([row[f"{m}_returns"] for row in evaluations]).T for m in methods}
        rewards = {m: np.array([row[f"{m}_rewards"] for row in evaluations]).T for m in methods}
        frames = np.array([row["frames"] for row in evaluations])
        worlds.append(WorldRun(name, start["layout"], start["optimal_return"], frames, returns, rewards, last))
    if not worlds:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a finished run of mirl_grid, got none.")
    return worlds


def draw_grid_curves(folder: Path, path: Path) -> Path:
    """Draws greedy returns (above) and rewards while learning (below), mean and 95% interval, one column per world.

    Raises:
        ValueError: as :func:`read_worlds`.
    """
    worlds = read_worlds(folder)
    charts = []
    for what, name in (("returns", "return of the greedy policy"), ("rewards", "reward per step while learning")):
        for place, world in enumerate(worlds):
            curves = getattr(world, what).items()
            lines = [Line(LABELS[m], _SERIES.index(m), world.frames, *mean_interval(of)) for m, of in curves]
            optimum, y_label = world.optimal_return, "" if place else name
            if what == "rewards":
                charts.append(chart(world.name, lines, x_label="", y_label=y_label))
                continue
            # Without limits, the low returns of early policies would flatten the curves.
            span = (-2.0 * abs(optimum) - 10, optimum + 1)
            charts.append(chart(world.name, lines, x_label="", y_label=y_label, span=span, level=optimum))
    seeds = len(next(iter(worlds[0].returns.values())))
    return draw(charts, path, columns=len(worlds), x_label=f"environment frames of each agent ({seeds} seeds)")


def draw_priors(folder: Path, path: Path) -> Path:
    """Draws the map of each world with MIRL's greedy actions, and below it the learnt and the exact prior.

    Raises:
        ValueError: as :func:`read_worlds`, or MIRL is not among the methods.
    """
    worlds = read_worlds(folder)
    if "mirl" not in worlds[0].last["prior"]:
        raise ValueError(f"methods must include mirl, whose prior is drawn, got {', '.join(worlds[0].last['prior'])}.")
    figure = new_figure(3.3 * len(worlds) + 0.4, 5.4)
    axes = figure.subplots(2, len(worlds), squeeze=False, height_ratios=[1.7, 1])
    for world, (above, below) in zip(worlds, axes.T, strict=True):
        _draw_map(above, world)
        _draw_prior(styled(below), world)
    axes[1, 0].set_ylabel("probability", fontsize=9)
    axes[1, -1].legend(frameon=False, fontsize=8, loc="upper right")
    figure.suptitle("MIRL", fontsize=10, x=0.01, ha="left")
    return save(figure, path)


def grid_table(folder: Path) -> str:
    """Markdown table: final return, frames until solved and reward while learning, mean [95% interval] over seeds.

    A world is solved by a return within half a reward unit of the optimum at three consecutive evaluations. If not all
    seeds solve it, the mean is over those that do, and the cell has their number.

    Raises:
        ValueError: as :func:`read_worlds`.
    """
    lines = ["| world (optimum) | method | final return | frames until solved | reward per step while learning |"]
    lines.append("|---|---|---|---|---|")
    for world in read_worlds(folder):
        for method in world.returns:
            solved = world.frames_to_solve(method)
            reached = solved[np.isfinite(solved)]
            until = cell(reached, ".0f") if len(reached) else "never"
            until += "" if len(reached) == len(solved) else f" ({len(reached)} of {len(solved)} seeds)"
            final, reward = cell(world.returns[method][:, -1], ".2f"), cell(world.rewards[method].mean(1), ".3f")
            optimum = f"{round(world.optimal_return, 9) + 0.0:.2f}"
            lines.append(f"| {world.name} ({optimum}) | {LABELS[method]} | {final} | {until} | {reward} |")
    return "\n".join(lines)


def _draw_map(axes: Axes, world: WorldRun) -> None:
    """Draws the map, with arrows as long as the share of seeds that move in their direction."""
    marks = {(row, col): mark for row, line in enumerate(world.layout) for col, mark in enumerate(line)}
    for (row, col), mark in marks.items():
        color = {"#": "#404040", "G": "#F0C040"}.get(mark, "#F4F4F4")
        axes.add_patch(Rectangle((col, row), 1, 1, facecolor=color, edgecolor="white", linewidth=0.8))
    states = [place for place, mark in marks.items() if mark != "#"]
    for place, shares in zip(states, world.last["mirl_greedy"], strict=True):
        y, x = place[0] + 0.5, place[1] + 0.5
        if marks[place] == "G":
            axes.text(x, y, "G", ha="center", va="center", fontsize=8)
            continue
        for (right, down), share in zip(_ARROWS, shares, strict=True):
            to = ([x, x + 0.42 * share * right], [y, y + 0.42 * share * down])
            axes.plot(*to, color=_MIRL, linewidth=1.6 if share else 0, solid_capstyle="round")
        axes.plot(x, y, ".", color=_MIRL, markersize=3)
    axes.set(xlim=(0, len(world.layout[0])), ylim=(len(world.layout), 0), aspect="equal")
    axes.axis("off")
    axes.set_title(f"{world.name}: greedy actions (share of seeds)", fontsize=9, loc="left")


def _draw_prior(axes: Axes, world: WorldRun) -> None:
    learnt, exact = np.array(world.last["prior"]["mirl"]), np.array(world.last["exact_prior"])
    position = np.arange(len(_ACTIONS))
    mean, low, high = mean_interval(learnt)
    error = np.stack((mean - low, high - mean))
    axes.bar(position - 0.19, mean, 0.36, yerr=error, color=_MIRL, capsize=2, label="learnt (MIRL)")
    axes.bar(position + 0.19, exact, 0.36, color="#BBBBBB", label="exact")
    axes.axhline(1 / len(_ACTIONS), color="#404040", linestyle=":", linewidth=1, label="uniform (SQL)")
    axes.set_xticks(position, _ACTIONS, fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"prior at beta = {world.last['mirl_beta']:.3g}", fontsize=9, loc="left")
