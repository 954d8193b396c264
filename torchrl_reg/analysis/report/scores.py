"""The numbers of a report: final scores, learning curves, profiles and diagnostics of groups of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.mean_curve import mean_curve
from torchrl_reg.analysis.report.chart import Line
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.runs import RunRecord
from torchrl_reg.analysis.scores import has_score, normalized, scale_of, scores_of
from torchrl_reg.analysis.statistics import (
    Estimate,
    interquartile_mean,
    mean,
    performance_profile,
    profile_thresholds,
    stratified_bootstrap,
    stratified_estimate,
)

Array = NDArray[np.float64]
_RESAMPLES = 2_000
#: Points of a curve; more would only make the file larger.
_CURVE_POINTS, _DIAGNOSTIC_POINTS = 200, 120
_NOT_DIAGNOSTICS = frozenset({"event", "frames", "updates", "episodes", "fps", "wall_seconds", "eval_seconds"})
_FIRST = ("return_mean", "loss", "entropy", "kl", "action_gap", "bonus", "bonus_clipped", "soft_gap", "td_error")


def final_scores(group: Group, column: str) -> list[float]:
    """The last evaluations of the finished runs, where they are finite numbers, in the order of their seeds."""
    return scores_of(group, "final", column).values.tolist()


def estimate(scores: Sequence[float]) -> Estimate | None:
    """Mean over the seeds with its 95% percentile-bootstrap interval; None without scores."""
    if not scores:
        return None
    return stratified_estimate([scores], mean, resamples=_RESAMPLES)


def learning_curve(group: Group, column: str, series: int) -> Line | None:
    """Mean over the seeds as far as all of them got, with intervals, and dashed beyond; None without evaluations."""
    curves = [curve for run in group.runs if len((curve := run.evaluations(column))[0])]
    if not curves:
        return None
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    values = np.full((len(every), len(curves)), np.nan)
    for seed, (frames, found) in enumerate(curves):
        values[np.searchsorted(every, frames), seed] = found
    beyond = every > min(frames[-1] for frames, _ in curves)
    common = ~beyond & ~np.isnan(values).any(1)
    x, shared = _averaged(every[common].astype(np.float64), values[common], _CURVE_POINTS)
    band = stratified_bootstrap(shared, [len(curves)], mean, resamples=_RESAMPLES) if len(x) else np.zeros((3, 0))
    rest = np.nanmean(values[beyond], 1) if beyond.any() else np.zeros(0)
    more = _averaged(every[beyond].astype(np.float64), rest, _CURVE_POINTS)
    low, high = band[1:] if len(curves) > 1 else (None, None)
    return Line(f"{group.method} ({len(curves)})", series, x, band[0], low, high, *more)


def ranked(sweep: Sweep) -> list[str]:
    """Methods from the best down, by mean rank of their last evaluations over the environments."""
    ranks: dict[str, list[int]] = {method: [] for method in sweep.methods}
    for env in sweep.envs:
        ends = {
            group.method: [values[-1] for run in group.runs if len(values := run.evaluations(sweep.column)[1])]
            for group in sweep.of_env(env)
        }
        best_first = sorted(ends, key=lambda name: -float(np.mean(ends[name])) if ends[name] else float("inf"))
        for place, method in enumerate(best_first):
            ranks[method].append(place)
    return sorted(ranks, key=lambda name: float(np.mean(ranks[name])) if ranks[name] else float("inf"))


def diagnostic_names(groups: Iterable[Group]) -> list[str]:
    """Columns of the training rows that move, returns and losses first."""
    values: dict[str, list[float]] = {}
    for run in (run for group in groups for run in group.runs):
        for name in run.names("train"):
            found = run.training(name)[1]
            if name not in _NOT_DIAGNOSTICS and len(found):
                values.setdefault(name, []).extend((found.min(), found.max()))
    moving = [name for name, ends in values.items() if max(ends) > min(ends)]
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(moving, key=lambda name: rank.get("loss" if name.startswith("loss") else name, 99))


def diagnostic_line(group: Group, name: str, series: int) -> Line | None:
    """Mean of a training column over the seeds that got there."""
    curves = [list(zip(*run.training(name), strict=True)) for run in group.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    return Line(group.method, series, *_averaged(*mean_curve(curves), _DIAGNOSTIC_POINTS))


@dataclass(frozen=True)
class ScaledScores:
    """Final scores on a scale on which environments can be averaged.

    Args:
        scale: 0 and 1 of it, in words.
        runs: an array an environment, by method.
        name: ``human``, ``sac`` or ``none``.
    """

    scale: str
    runs: dict[str, list[Array]]
    name: str = "none"


def scaled_scores(sweep: Sweep) -> ScaledScores:
    """Final scores of the methods with a finished run on every environment that has any.

    0 is a random policy and 1 a human (Atari) or SAC (MuJoCo); elsewhere 0 is the worst finished run of an environment
    and 1 its best. Nothing where fewer than two environments or methods would be compared.
    """
    scores = {(group.method, group.env): final_scores(group, sweep.column) for group in sweep.groups}
    envs = [env for env in sweep.envs if any(scores.get((method, env)) for method in sweep.methods)]
    scale = scale_of(envs) if envs else "none"
    envs = [env for env in envs if has_score(env, scale)]
    complete = [method for method in sweep.methods if all(scores.get((method, env)) for env in envs)]
    words = {"human": "0 is the random policy and 1 a human", "sac": "0 is the random policy and 1 is SAC"}
    shown = words.get(scale, "0 is the worst finished run of an environment in this sweep and 1 its best")
    if len(envs) < 2 or len(complete) < 2:
        return ScaledScores(shown, {}, scale)
    frames = max(run.frames for run in sweep.runs)

    def scaled(method: str, env: str) -> Array:
        values = np.array(scores[method, env])
        if scale != "none":
            return normalized(env, values, scale, frames)
        found = [score for each in sweep.methods for score in scores.get((each, env), [])]
        return _scaled(values, min(found), max(found))

    return ScaledScores(shown, {method: [scaled(method, env) for env in envs] for method in complete}, scale)


def aggregate(scaled: Sequence[Array]) -> Estimate:
    """Interquartile mean of scaled scores over runs and environments with a 95% stratified-bootstrap interval."""
    return stratified_estimate(scaled, interquartile_mean, resamples=_RESAMPLES)


def profiles(sweep: Sweep, points: int = 301) -> tuple[list[Line], float]:
    """Share of runs above each scaled score (:func:`scaled_scores`), and the share of runs right of the profile."""
    found = scaled_scores(sweep)
    if not found.runs:
        return [], 0.0
    every = [each for scaled in found.runs.values() for each in scaled]
    thresholds, beyond = profile_thresholds(every, found.name, points)
    lines = []
    for method, scaled in found.runs.items():
        share, low, high = performance_profile(scaled, thresholds, resamples=_RESAMPLES)
        series = sweep.methods.index(method)
        lines.append(Line(method, series, thresholds, share, low, high))
    return lines, beyond


def effort(runs: Iterable[RunRecord]) -> tuple[int, float]:
    """Frames and seconds spent on ``runs`` so far, over all their processes up to the last row."""
    runs = list(runs)
    return sum(run.frames for run in runs), sum(run.wall_seconds for run in runs)


def _scaled(values: Array, low: float, high: float) -> Array:
    return (values - low) / (high - low) if high > low else np.ones(len(values))


def _averaged(x: Array, y: Array, count: int) -> tuple[Array, Array]:
    """At most ``count`` points: means of runs of neighbours of ``y [E, ...]``, each at the last of its places."""
    if len(x) <= count:
        return x, y
    starts = np.linspace(0, len(x), count + 1).astype(int)[:-1]
    sizes = np.diff([*starts, len(x)])
    means = np.add.reduceat(y, starts, axis=0) / sizes.reshape(-1, *[1] * (y.ndim - 1))
    return x[starts + sizes - 1], means
