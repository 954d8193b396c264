"""Learning curves as arrays: the seeds of a method over frames, and methods over environments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.runs import RunRecord
from torchrl_reg.analysis.scores import normalized
from torchrl_reg.analysis.statistics import Estimator, stratified_bootstrap

Array = NDArray[np.float64]


def group_curve(group: Group, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], Array] | None:
    """Frames ``[E]`` that all seeds have evaluated, and values ``[seeds, E]``; None without any.

    Seeds that have no evaluation yet are left out. An evaluation that is null for one seed is left out for all.

    Raises:
        AnalysisError: seeds evaluated at different frames.
    """
    runs = [(run, *run.evaluations(column)) for run in group.runs]
    runs = [each for each in runs if len(each[1])]
    if not runs:
        return None
    first, common, _ = runs[0]
    for run, frames, _ in runs[1:]:
        common = np.intersect1d(common, frames)
        if _differ(first, run, column):
            raise AnalysisError(
                f"seeds of {group.method} on {group.env} must be evaluated at the same frames, got different ones in "
                f"{first.path} and {run.path}."
            )
    if not len(common):
        return None
    return common, np.stack([values[np.searchsorted(frames, common)] for _, frames, values in runs])


def _differ(one: RunRecord, other: RunRecord, column: str) -> bool:
    """Whether two runs were evaluated at different frames, as far as both got; nulls count as evaluated."""
    frames = [run.evaluated_frames(column) for run in (one, other)]
    length = min(map(len, frames))
    return not np.array_equal(frames[0][:length], frames[1][:length])


def aggregate_curve(
    groups: Sequence[Group],
    scale: str,
    estimator: Estimator,
    column: str = "return_greedy_mean",
    *,
    frames: int,
    points: int = 50,
) -> tuple[Array, Array]:
    """One method over its environments: frames ``[E]`` and ``[3, E]`` (value, low, high) of normalized returns.

    Curves are interpolated linearly at common frames, from the first evaluation that all environments have to the last.

    Args:
        groups: of one method, one an environment.
        scale: ``human`` or ``sac``.
        estimator: the aggregate over environments and runs.
        frames: length of the experiment, which SAC's reference returns depend on.
        points: E at most.

    Raises:
        AnalysisError: an environment without evaluations, or none in common.
    """
    curves = [(group, group_curve(group, column)) for group in groups]
    missing = [group.env for group, curve in curves if curve is None]
    if missing:
        raise AnalysisError(
            f"{groups[0].method} must have evaluations of {column} everywhere, got none on {missing[0]}."
        )
    found = [(group.env, *curve) for group, curve in curves if curve is not None]
    start, stop = max(each[0] for _, each, _ in found), min(each[-1] for _, each, _ in found)
    if start > stop:
        raise AnalysisError(f"{groups[0].method} must be evaluated at frames that overlap, got none in common.")
    common = np.linspace(start, stop, min(points, max(len(each) for _, each, _ in found)))
    runs = [
        np.stack([np.interp(common, each, normalized(env, seed, scale, frames)) for seed in values])
        for env, each, values in found
    ]
    sizes = [len(task) for task in runs]
    return common, stratified_bootstrap(np.concatenate(runs).T, sizes, estimator, resamples=1_000)


def curve_notes(groups: Sequence[Group], column: str = "return_greedy_mean") -> list[str]:
    """What curves of ``groups`` do not show: runs not finished or without evaluations, and seeds that went further."""
    runs = [run for group in groups for run in group.runs]
    found = []
    going = [run for run in runs if run.done is None]
    if going:
        listed = ", ".join(str(run.path) for run in going[:3]) + ", ..." * (len(going) > 3)
        found.append(f"{len(going)} of {len(runs)} runs {'is' if len(going) == 1 else 'are'} not finished: {listed}")
    empty = [run for run in runs if not len(run.evaluations(column)[0])]
    if empty:
        found.append(f"{len(empty)} of {len(runs)} runs have no evaluation of {column}, such as {empty[0].path}")
    short = []
    for group in groups:
        curve = group_curve(group, column)
        longest = max((int(run.evaluations(column)[0][-1:].sum()) for run in group.runs), default=0)
        if curve is not None and curve[0][-1] < longest:
            short.append(f"{group.method} on {group.env} at {curve[0][-1]} of {longest} frames")
    if short:
        found.append(f"curves end where the shortest seed does: {'; '.join(short[:3])}{'; ...' * (len(short) > 3)}")
    return found
