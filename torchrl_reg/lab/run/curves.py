"""``curves.png``: returns, loss and diagnostics of one run over environment frames."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from torchrl_reg.lab.analysis.runs import read_run
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.metrics import WALL_CLOCK_COLUMNS, read_metrics

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: safe for colour blindness
_GREY = "#8C8C8C"
_COUNTS = {"event", "frames", "updates", "episodes", "diagnostics_every_updates", "diverged_frames"}
_NOT_PLOTTED = {*_COUNTS, "return_mean", "return_last_100", *WALL_CLOCK_COLUMNS}
_COLUMNS = 3
_WIDTH = 7.2  # inches: text keeps its size on a page 720 pixels wide


def draw_curves(folder: Path) -> Path:
    """Draws ``metrics.jsonl`` of the run in ``folder`` to ``curves.png`` beside it."""
    rows = read_metrics(folder / "metrics.jsonl")
    train, evaluations = ([row for row in rows if row["event"] == event] for event in ("train", "eval"))
    names = list(dict.fromkeys(name for row in train for name in row if name not in _NOT_PLOTTED))
    names = [name for name in names if _varies(_points(train, name)[1])]
    names.sort(key=lambda name: not name.startswith("loss"))  # losses first
    lines = -(-len(names) // _COLUMNS)
    height = 3.2 + 1.7 * lines
    figure = Figure(figsize=(_WIDTH, height))  # margins in inches: a layout engine would draw everything twice
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1 + lines,
        _COLUMNS,
        height_ratios=[1.8] + [1] * lines,
        hspace=0.5,
        wspace=0.3,
        left=0.09,
        right=0.98,
        bottom=0.45 / height,
        top=1 - 0.4 / height,
    )
    _draw_returns(figure.add_subplot(grid[0, :]), train, evaluations)
    for index, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + index // _COLUMNS, index % _COLUMNS])
        axes.plot(*_points(train, name), color=_COLORS[0])
        axes.set_title(name, fontsize=9, loc="left")
        _style(axes)
    with suppress(UserError):  # a recipe outside this package may have no environment to name
        run = read_run(folder)
        figure.suptitle(f"{run.recipe} on {run.env}, seed {run.seed}", fontsize=10)
    path = folder / "curves.png"
    figure.savefig(path, dpi=200)
    return path


def _draw_returns(axes: Axes, train: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    training = {"return_mean": (_GREY, "training episodes"), "return_last_100": ("black", "last 100 of them")}
    for name, (color, label) in training.items():
        if (points := _points(train, name))[0]:
            axes.plot(*points, color=color, label=label, linewidth=1)
    columns = [name for name in (evaluations[0] if evaluations else ()) if name.startswith("return_")]
    policies = [name.removesuffix("_mean") for name in columns if name.endswith("_mean")]
    for policy, color in zip(policies, _COLORS, strict=False):
        frames, means = _points(evaluations, f"{policy}_mean")
        spreads = _points(evaluations, f"{policy}_std")[1]
        axes.plot(frames, means, color=color, marker="o", markersize=3, label=f"{policy[len('return_') :]} policy")
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylabel("return" + " (mean and standard deviation)" * bool(policies), fontsize=9)
    axes.set_xlabel("environment frames", fontsize=9)
    _style(axes)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, loc="best")


def _points(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    present = [row for row in rows if row.get(name) is not None]
    return [row["frames"] for row in present], [row[name] for row in present]


def _varies(values: Sequence[float]) -> bool:
    """True unless ``values`` are constant up to rounding."""
    return bool(values) and max(values) - min(values) > 1e-6 * max(map(abs, values))


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
