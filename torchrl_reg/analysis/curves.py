"""Learning curves as arrays: the seeds of a method over frames, and methods over environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis import statistics
from torchrl_reg.analysis.charts import Line
from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.record import Column
from torchrl_reg.analysis.scores import normalized
from torchrl_reg.analysis.statistics import Array, Estimator

#: Frames and values.
Curve = tuple[Array, Array]


def seed_values(curves: Sequence[Column]) -> tuple[NDArray[np.int64], Array]:
    """Frames ``[E]`` of any of the ``curves`` (frames and values of a seed), and values ``[seeds, E]``, else NaN."""
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    values = np.full((len(curves), len(every)), np.nan)
    for row, (frames, found) in zip(values, curves, strict=True):
        row[np.searchsorted(every, frames)] = found
    return every, values


def group_curve(group: Group, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], Array] | None:
    """Frames ``[E]`` that all seeds have evaluated, and values ``[seeds, E]``; None without any.

    Seeds that have no evaluation yet are left out. An evaluation that is null for one seed is left out for all.

    Raises:
        AnalysisError: seeds evaluated at different frames.
    """
    runs = [run for run in group.runs if len(run.evaluations(column)[0])]
    for run in runs[1:]:
        frames_of = [each.evaluated_frames(column) for each in (runs[0], run)]  # nulls count as evaluated
        both = min(map(len, frames_of))
        if not np.array_equal(frames_of[0][:both], frames_of[1][:both]):
            raise AnalysisError(
                f"seeds of {group.method} on {group.env} must be evaluated at the same frames, got different ones in "
                f"{runs[0].path} and {run.path}."
            )
    if not runs:
        return None
    frames, values = seed_values([run.evaluations(column) for run in runs])
    common = ~np.isnan(values).any(0)
    return (frames[common], values[:, common]) if common.any() else None


def mean_curve(curves: Sequence[Column]) -> Curve:
    """Mean at every frame of any curve, over the curves whose span holds it (linear in between)."""
    if not curves:
        return np.zeros(0), np.zeros(0)
    frames = np.unique(np.concatenate([x for x, _ in curves])).astype(np.float64)
    values = np.stack([np.interp(frames, x, y, left=np.nan, right=np.nan) for x, y in curves])
    return frames, np.nanmean(values, 0)


def aggregate_curve(
    groups: Sequence[Group], scale: str, estimator: Estimator, column: str = "return_greedy_mean", *, frames: int
) -> tuple[Array, Array]:
    """One method over its environments: frames ``[E]`` and ``[3, E]`` (value, low, high) of normalized returns.

    Curves are interpolated linearly at 50 common frames at most, from the first evaluation that all environments have
    to the last.

    Args:
        groups: of one method, one an environment.
        scale: ``human`` or ``sac``.
        estimator: the aggregate over environments and runs.
        frames: length of the experiment, which SAC's reference returns depend on.

    Raises:
        AnalysisError: an environment without evaluations, or none in common.
    """
    curves = [(group, group_curve(group, column)) for group in groups]
    if missing := [group.env for group, curve in curves if curve is None]:
        raise AnalysisError(
            f"{groups[0].method} must have evaluations of {column} everywhere, got none on {missing[0]}."
        )
    found = [(group.env, *curve) for group, curve in curves if curve is not None]
    start, stop = max(each[0] for _, each, _ in found), min(each[-1] for _, each, _ in found)
    if start > stop:
        raise AnalysisError(f"{groups[0].method} must be evaluated at frames that overlap, got none in common.")
    common = np.linspace(start, stop, min(50, max(len(each) for _, each, _ in found)))
    runs = [
        np.stack([np.interp(common, each, normalized(env, seed, scale, frames)) for seed in values])
        for env, each, values in found
    ]
    sizes = [len(task) for task in runs]
    return common, statistics.stratified_bootstrap(np.concatenate(runs).T, sizes, estimator, resamples=1_000)


def profile_lines(
    runs: Mapping[str, Sequence[Array]], scale: str, *, resamples: int, points: int = 301
) -> tuple[list[Line], float]:
    """By method (one array of scores an environment) the share of runs above each score, and that beyond the last."""
    if not runs:
        return [], 0.0
    thresholds, beyond = statistics.profile_thresholds([each for of in runs.values() for each in of], scale, points)
    bands = (statistics.performance_profile(each, thresholds, resamples=resamples) for each in runs.values())
    lines = zip(runs, bands, strict=True)
    return [Line(method, series, thresholds, *band) for series, (method, band) in enumerate(lines)], beyond
