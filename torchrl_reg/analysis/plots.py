"""Figures of finished runs: learning curves, aggregates over environments, improvement bars, performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from torchrl_reg.analysis.colors import GREY, LIGHT
from torchrl_reg.analysis.curves import aggregate_curve, group_curve
from torchrl_reg.analysis.errors import AnalysisError, one_of
from torchrl_reg.analysis.figures import (
    add_legend,
    frames_axis,
    new_figure,
    panels,
    returns_axis,
    save,
    styled,
    styles,
)
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.numbers import percent
from torchrl_reg.analysis.scores import (
    Scores,
    by_env,
    comparable,
    envs_of,
    has_score,
    known_method,
    longest,
    methods_of,
    normalized,
    on_scale,
)
from torchrl_reg.analysis.statistics import (
    AGGREGATES,
    Estimator,
    beyond_note,
    interquartile_mean,
    mean,
    performance_profile,
    profile_thresholds,
    stratified_bootstrap,
)

_UNITS = {"human": "human-normalized", "sac": "SAC-normalized"}
_CENTERS: dict[str, Estimator] = {"mean": mean, "iqm": interquartile_mean}


def draw_learning_curves(
    groups: Sequence[Group], path: Path, *, column: str = "return_greedy_mean", center: str = "mean"
) -> Path:
    """One panel an environment, one curve a method: mean or IQM (``center``) of its seeds with a 95% interval.

    Raises:
        AnalysisError: no evaluations at all, seeds evaluated at different frames, or a bad ``center`` or suffix.
    """
    estimator = _CENTERS[one_of("center", center, _CENTERS)]
    envs = list(dict.fromkeys(group.env for group in groups))
    looks = styles(list(dict.fromkeys(group.method for group in groups)))
    columns = min(len(envs), 4 if len(envs) > 4 else 3)
    lines = -(-len(envs) // columns)
    width, height = (6.4, 3.6) if len(envs) == 1 else (2.9 * columns, 2.2 * lines)
    figure = new_figure(width, height + 0.5)
    drawn = False
    for env, axes in panels(figure, envs, columns):
        for group in groups:
            curve = group_curve(group, column) if group.env == env else None
            if curve is not None:
                frames, values = curve
                band = stratified_bootstrap(values.T, [len(values)], estimator)
                _band(axes, frames, band, looks[group.method])
                drawn = True
        frames_axis(axes)
        returns_axis(axes)
    if not drawn:
        raise AnalysisError(f"results must hold evaluations of {column}, got none.")
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
    axes.set_ylabel(f"{aggregate}, {_UNITS[scale]} ({_count(len(envs))})", fontsize=9)
    add_legend(figure, looks)
    return save(figure, path)


def draw_improvement(scores: Sequence[Scores], path: Path, *, method: str, baseline: str, scale: str) -> Path:
    """A bar an environment: how far ``method`` is above ``baseline``, in percent on a symmetric log scale.

    ``100 (x - b) / max(1, b)`` of normalized means x and b: relative to the reference agent or the baseline, whichever
    is higher (Wang et al., 2016). Without a scale ``100 (x - b) / |b|`` of mean returns.

    Raises:
        AnalysisError: unknown methods, no environment in common, a baseline of 0 without a scale, or a bad suffix.
    """
    methods = methods_of(scores)
    known_method(method, methods), known_method(baseline, methods)
    scores = on_scale(scores, scale)
    frames = longest(scores)
    means = [
        {env: float(normalized(env, runs, scale, frames).mean()) for env, runs in by_env(scores, label).items()}
        for label in (method, baseline)
    ]
    found = {env: _improvement(env, means[0][env], means[1][env], scale) for env in means[0] if env in means[1]}
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
    better = int((values > 0).sum())
    axes.set_title(f"{method} over {baseline}: better on {better} of {_count(len(envs))}", fontsize=9, loc="left")
    unit = f"{_UNITS[scale]} score" if scale in _UNITS else "return"
    axes.set_xlabel(f"improvement in {unit} (%)", fontsize=9)
    return save(figure, path)


def draw_profiles(scores: Sequence[Scores], path: Path, *, scale: str) -> Path:
    """Share of runs above each normalized score, averaged over environments, with 95% intervals (run-score profile).

    Only methods with runs on every environment are drawn.

    Raises:
        AnalysisError: no common scale, no such method, or a bad suffix.
    """
    _scaled(scale)
    scores = on_scale(scores, scale)
    complete = comparable(scores, scale)
    if not complete:
        raise AnalysisError(f"results must hold a method with runs on all of {', '.join(envs_of(scores))}, got none.")
    thresholds, beyond = profile_thresholds([runs for each in complete.values() for runs in each], scale)
    looks = styles(list(complete))
    figure = new_figure(6.4, 3.9)
    axes = styled(figure.add_subplot())
    for method, runs in complete.items():
        band = performance_profile(runs, thresholds, resamples=1_000)
        _band(axes, thresholds, band, looks[method] | {"drawstyle": "steps-post"})
    if beyond:
        axes.set_title(beyond_note(beyond), fontsize=8, loc="right", color=GREY)
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
    axes.set_xlabel(f"{_UNITS[scale]} score, s", fontsize=9)
    axes.set_ylabel(f"runs with a score above s ({_count(len(envs_of(scores)))})", fontsize=9)
    add_legend(figure, looks)
    return save(figure, path)


def _band(axes: Axes, x: NDArray, band: NDArray, look: dict) -> None:
    value, low, high = band
    axes.plot(x, value, linewidth=1.6, marker="o" if len(x) == 1 else None, markersize=4, **look)
    stepped: dict[str, Any] = {"step": "post"} if "drawstyle" in look else {}
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0, **stepped)


def _improvement(env: str, score: float, baseline: float, scale: str) -> float:
    if scale in _UNITS:
        return 100 * (score - baseline) / max(1.0, baseline)
    if baseline == 0:
        raise AnalysisError(f"the baseline's mean return on {env} must not be 0 without a scale, got 0.")
    return 100 * (score - baseline) / abs(baseline)


def _percent_axis(axes: Axes, largest: float) -> None:
    """Linear up to 10%, then by powers of ten, the same to either side."""
    axes.set_xscale("symlog", linthresh=10, linscale=0.6)
    ends = [10.0**power for power in range(1, 1 + max(1, int(np.ceil(np.log10(max(largest, 10))))))]
    axes.set_xticks([-end for end in reversed(ends)] + [0.0] + ends)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlim(-3 * max(largest, 10), 3 * max(largest, 10))


def _scaled(scale: str) -> None:
    if scale not in _UNITS:
        raise AnalysisError(
            "normalize must be human or sac to average environments, got none; returns of different environments "
            "have no common scale."
        )


def _count(envs: int) -> str:
    return f"{envs} environments" if envs > 1 else "1 environment"
