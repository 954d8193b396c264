"""Figures of finished runs: learning curves, aggregates over environments, improvement bars, performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from torchrl_reg.analysis import statistics
from torchrl_reg.analysis.colors import GREY, LIGHT
from torchrl_reg.analysis.curves import aggregate_curve, group_curve
from torchrl_reg.analysis.errors import AnalysisError, one_of
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.numbers import counted, percent
from torchrl_reg.analysis.scores import SCALE_NAMES, Scoreboard, Scores, has_score
from torchrl_reg.analysis.statistics import AGGREGATES

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
#: Methods a legend above the panels holds, and inches a row of it takes.
_MOST_ABOVE, _LEGEND_ROW = 12, 0.19
SUFFIXES = (".png", ".svg", ".pdf")
_CENTERS = {"mean": statistics.mean, "iqm": statistics.interquartile_mean}


def draw_learning_curves(
    groups: Sequence[Group], path: Path, *, column: str = "return_greedy_mean", center: str = "mean"
) -> Path:
    """One panel an environment, one curve a method: mean or IQM (``center``) of its seeds with a 95% interval.

    Raises:
        AnalysisError: no evaluations at all, seeds evaluated at different frames, or a bad ``center`` or suffix.
    """
    estimator = _CENTERS[one_of("center", center, _CENTERS)]
    curves = [(group, curve) for group in groups if (curve := group_curve(group, column)) is not None]
    if not curves:
        raise AnalysisError(f"results must hold evaluations of {column}, got none.")
    envs = list(dict.fromkeys(group.env for group in groups))
    looks = styles(list(dict.fromkeys(group.method for group in groups)))
    columns = min(len(envs), 4 if len(envs) > 4 else 3)
    lines = -(-len(envs) // columns)
    width, height = (6.4, 3.6) if len(envs) == 1 else (2.9 * columns, 2.2 * lines)
    figure = new_figure(width, height + 0.5)
    for place, env in enumerate(envs, 1):
        axes = styled(figure.add_subplot(lines, columns, place))
        axes.set_title(env, fontsize=9, loc="left")
        for group, (frames, values) in curves:
            if group.env == env:
                band = statistics.stratified_bootstrap(values.T, [len(values)], estimator)
                _band(axes, frames, band, looks[group.method])
        frames_axis(axes)
        if max(map(abs, axes.get_ylim())) >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel("environment frames", fontsize=9)
    name = column.removeprefix("return_").removesuffix("_mean").replace("_", " ")
    figure.supylabel(f"{name} return" if column.startswith("return_") else name, fontsize=9)
    add_legend(figure, looks)
    return save(figure, path)


def draw_aggregate_curves(
    groups: Sequence[Group],
    path: Path,
    *,
    scale: str,
    column: str = "return_greedy_mean",
    aggregate: str = "IQM",
) -> Path:
    """``aggregate`` (IQM, median, mean or optimality gap) over environments of normalized returns, over frames.

    Only methods with runs on every environment are drawn.

    Raises:
        AnalysisError: no common scale, no such method, or a bad ``aggregate`` or suffix.
    """
    _scaled(scale)
    one_of("aggregate", aggregate, AGGREGATES)
    groups = [group for group in groups if has_score(group.env, scale)]
    envs = {group.env for group in groups}
    methods = dict.fromkeys(group.method for group in groups)
    of = {method: [group for group in groups if group.method == method] for method in methods}
    complete = [method for method in methods if {group.env for group in of[method]} == envs]
    if not complete:
        raise AnalysisError(f"results must hold a method with runs on all of {', '.join(sorted(envs))}, got none.")
    frames = max(run.last_evaluation(column) for group in groups for run in group.runs)
    looks = styles(complete)
    figure = new_figure(6.4, 3.9)
    axes = styled(figure.add_subplot())
    for method, look in looks.items():
        _band(axes, *aggregate_curve(of[method], scale, AGGREGATES[aggregate], column, frames=frames), look)
    frames_axis(axes)
    axes.set_xlabel("environment frames", fontsize=9)
    axes.set_ylabel(f"{aggregate}, {SCALE_NAMES[scale]} ({counted(len(envs), 'environment')})", fontsize=9)
    add_legend(figure, looks)
    return save(figure, path)


def draw_improvement(scores: Sequence[Scores], path: Path, *, method: str, baseline: str, scale: str) -> Path:
    """A bar an environment: how far ``method`` is above ``baseline``, in percent on a symmetric log scale.

    ``100 (x - b) / max(1, b)`` of normalized means x and b: relative to the reference agent or the baseline, whichever
    is higher (Wang et al., 2016). Without a scale ``100 (x - b) / |b|`` of mean returns.

    Raises:
        AnalysisError: unknown methods, no environment in common, a baseline of 0 without a scale, or a bad suffix.
    """
    board = Scoreboard(scores, scale)
    ours, theirs = board.of(method), board.of(baseline)
    shared = [env for env in ours if env in theirs and has_score(env, scale)]
    means = {env: [float(board.normalized(env, of[env]).mean()) for of in (ours, theirs)] for env in shared}
    found = {env: _improvement(env, score, other, scale) for env, (score, other) in means.items()}
    if not found:
        raise AnalysisError(f"{method} and {baseline} must share an environment, got none.")
    envs = sorted(found, key=lambda env: found[env])
    values = np.array([found[env] for env in envs])
    figure = new_figure(6.4, 1.1 + 0.19 * max(len(envs), 3))
    axes = styled(figure.add_subplot())
    axes.grid(axis="y", visible=False)
    colors = [LIGHT[0] if value >= 0 else LIGHT[1] for value in values]
    bars = axes.barh(range(len(envs)), values, color=colors, height=0.7)
    axes.bar_label(bars, [percent(value) for value in values], padding=3, fontsize=7, color=GREY)
    axes.set_yticks(range(len(envs)), [env.removeprefix("atari/") for env in envs], fontsize=8)
    axes.set_ylim(-0.6, len(envs) - 0.4)
    axes.axvline(0, color=GREY, linewidth=0.8)
    _percent_axis(axes, float(np.abs(values).max()))
    better = f"better on {(values > 0).sum()} of {counted(len(envs), 'environment')}"
    axes.set_title(f"{method} over {baseline}: {better}", fontsize=9, loc="left")
    unit = SCALE_NAMES[scale] + " score" * (scale != "none")
    axes.set_xlabel(f"improvement in {unit} (%)", fontsize=9)
    return save(figure, path)


def draw_profiles(scores: Sequence[Scores], path: Path, *, scale: str) -> Path:
    """Share of runs above each normalized score, averaged over environments, with 95% intervals (run-score profile).

    Only methods with runs on every environment are drawn.

    Raises:
        AnalysisError: no common scale, no such method, or a bad suffix.
    """
    _scaled(scale)
    board = Scoreboard(scores, scale).on_scale()
    complete = board.comparable()
    if not complete:
        raise AnalysisError(f"results must hold a method with runs on all of {', '.join(board.envs)}, got none.")
    thresholds, beyond = statistics.profile_thresholds([runs for each in complete.values() for runs in each], scale)
    looks = styles(list(complete))
    figure = new_figure(6.4, 3.9)
    axes = styled(figure.add_subplot())
    for method, runs in complete.items():
        band = statistics.performance_profile(runs, thresholds, resamples=1_000)
        _band(axes, thresholds, band, looks[method] | {"drawstyle": "steps-post"})
    if beyond:
        axes.set_title(statistics.beyond_note(beyond), fontsize=8, loc="right", color=GREY)
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(f"{SCALE_NAMES[scale]} score, s", fontsize=9)
    axes.set_ylabel(f"runs with a score above s ({counted(len(board.envs), 'environment')})", fontsize=9)
    add_legend(figure, looks)
    return save(figure, path)


def _band(axes: Axes, x: NDArray, band: NDArray, look: dict) -> None:
    value, low, high = band
    axes.plot(x, value, linewidth=1.6, marker="o" if len(x) == 1 else None, markersize=4, **look)
    step: Literal["post"] | None = "post" if "drawstyle" in look else None
    axes.fill_between(x, low, high, step=step, color=look["color"], alpha=0.15, linewidth=0)


def _improvement(env: str, score: float, baseline: float, scale: str) -> float:
    if scale != "none":
        return 100 * (score - baseline) / max(1.0, baseline)
    if baseline == 0:
        raise AnalysisError(f"the baseline's mean return on {env} must not be 0 without a scale, got 0.")
    return 100 * (score - baseline) / abs(baseline)


def _percent_axis(axes: Axes, largest: float) -> None:
    """Linear up to 10%, then by powers of ten, the same to either side."""
    axes.set_xscale("symlog", linthresh=10, linscale=0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlim(-3 * max(largest, 10), 3 * max(largest, 10))


def _scaled(scale: str) -> None:
    if scale not in ("human", "sac"):
        raise AnalysisError(
            "normalize must be human or sac to average environments, got none; returns of different environments "
            "have no common scale."
        )


def styles(methods: Sequence[str]) -> dict[str, dict]:
    """A colour for each method, the same in every panel; dashes once the colours are used up."""
    looks = ((color, dash) for dash in cycle(_DASHES) for color in LIGHT)
    return {method: {"color": color, "linestyle": dash} for method, (color, dash) in zip(methods, looks, strict=False)}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches, made without pyplot, so that no display is needed."""
    return Figure(figsize=(width, height), layout="constrained")


def styled(axes: Axes) -> Axes:
    """``axes`` without frame, with a faint grid and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#B0B0B0")
    return axes


def frames_axis(axes: Axes) -> None:
    """Ticks of environment frames: 0, 50k, 2M."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01)


def add_legend(figure: Figure, looks: dict[str, dict]) -> None:
    """One frameless legend for all panels: above them, and to their right for more than 12 methods.

    The figure grows by what the legend takes, so that the panels keep their size.
    """
    handles = [Line2D([], [], linewidth=2, label=method, **look) for method, look in looks.items()]
    width, height = figure.get_size_inches()
    entry = 0.075 * max(len(method) for method in looks) + 0.45
    place: Literal["outside upper left", "outside right upper"]
    if len(looks) > _MOST_ABOVE:
        columns, place = 1, "outside right upper"
        figure.set_size_inches(width + entry, max(height, _LEGEND_ROW * len(looks) + 0.3))
    else:
        columns, place = max(1, min(len(looks), int(width / entry))), "outside upper left"
        figure.set_size_inches(width, height + _LEGEND_ROW * (-(-len(looks) // columns) - 1))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=8, handlelength=1.8)


def save(figure: Figure, path: Path) -> Path:
    """Writes ``figure`` to ``path``: PNG, SVG or PDF by its suffix.

    Raises:
        AnalysisError: another suffix, or a folder that cannot be written.
    """
    checked_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a date and with fixed names inside, equal runs give equal files.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        with rc_context({"svg.hashsalt": "torchrl_reg"}):
            figure.savefig(path, dpi=130, metadata=metadata)
    except OSError as error:
        raise AnalysisError(f"out must be a file that can be written, got {path}: {error.strerror}.") from None
    return path


def checked_path(path: Path) -> Path:
    """``path`` if its suffix is one that can be written.

    Raises:
        AnalysisError: it is not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AnalysisError(f"out must end in {', '.join(SUFFIXES)}, got {str(path)!r}.")
    return path
