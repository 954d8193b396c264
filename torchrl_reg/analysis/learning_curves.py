"""Learning curves of several methods, each the mean of its seeds with a bootstrap interval.

python -m torchrl_reg.analysis.learning_curves curves.png "IQ=results/iq/pendulum/default/*" "SAC=results/sac/*/*/*"
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from torchrl_reg.analysis.figures import COLORS
from torchrl_reg.analysis.record import metrics_rows


def evaluations(folder: Path, column: str = "return_greedy_mean") -> tuple[np.ndarray, np.ndarray]:
    """Frames and values of ``column`` in the evaluation rows of a run folder.

    Raises:
        ValueError: the folder holds no such evaluation.
    """
    rows = [row for row in metrics_rows(folder, '"eval"') if row["event"] == "eval"]
    found = [(row["frames"], row[column]) for row in rows if row.get(column) is not None]
    if not found:
        raise ValueError(f"{folder} must hold a metrics.jsonl with evaluations of {column}, got none.")
    frames, values = zip(*found, strict=True)
    return np.array(frames), np.array(values, dtype=float)


def mean_interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0) -> np.ndarray:
    """Mean over the seeds ``[S, ...]`` and the ends of its percentile-bootstrap interval, ``[3, ...]``."""
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[picks].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack((values.mean(0), low, high))


def draw_learning_curves(
    groups: Mapping[str, Sequence[Path]], path: Path, *, column: str = "return_greedy_mean", title: str = ""
) -> Path:
    """Draws one curve a group of run folders (the seeds of one method) to ``path`` (png, svg or pdf).

    Curves stop at the last frame that all seeds of the group have evaluated.

    Raises:
        ValueError: a group without runs, or runs evaluated at different frames.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, folders), color in zip(groups.items(), COLORS * len(groups), strict=False):
        if not folders:
            raise ValueError(f"group {name!r} must name at least one run folder, got none.")
        runs = [evaluations(folder, column) for folder in folders]
        length = min(len(frames) for frames, _ in runs)
        frames = runs[0][0][:length]
        if any(not np.array_equal(other[:length], frames) for other, _ in runs):
            raise ValueError(f"the runs of {name!r} must be evaluated at the same frames, got different ones.")
        mean, low, high = mean_interval(np.stack([values[:length] for _, values in runs]))
        axes.plot(frames, mean, color=color, label=f"{name} ({len(runs)})", linewidth=1.5)
        axes.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("environment frames")
    axes.set_ylabel(column.removeprefix("return_").removesuffix("_mean") + " return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def main(arguments: Sequence[str]) -> None:
    """``OUT.png "label=pattern of run folders" ...``; a last argument ``title=...`` is the title."""
    out, *pairs = arguments or ("",)
    if not pairs or not all("=" in pair for pair in pairs):
        raise SystemExit(f'expected OUT.png "label=pattern of run folders" ..., got {list(arguments)}.')
    named = dict(pair.split("=", 1) for pair in pairs)
    title = named.pop("title", "")
    groups = {label: sorted(Path(folder) for folder in glob.glob(pattern)) for label, pattern in named.items()}
    try:
        print(draw_learning_curves(groups, Path(out), title=title))
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
