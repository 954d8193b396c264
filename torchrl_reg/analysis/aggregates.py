"""Methods compared over environments: aggregates with intervals, and who improves on the baseline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.scores import Scores, normalized, on_scale
from torchrl_reg.analysis.statistics import AGGREGATES, Estimate, probability_of_improvement, stratified_estimate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Aggregate:
    """A method over all environments.

    Args:
        method: its label.
        runs: how many runs over all environments.
        estimates: by name (``"IQM"``, ...), of normalized scores; empty where there is no common scale.
        improvement: probability that a run of it beats one of the baseline; None without a baseline.
    """

    method: str
    runs: int
    estimates: dict[str, Estimate]
    improvement: Estimate | None


def methods_of(scores: Sequence[Scores]) -> list[str]:
    """The methods, in the order of ``scores``."""
    return list(dict.fromkeys(each.group.method for each in scores))


def envs_of(scores: Sequence[Scores]) -> list[str]:
    """The environments, in the order of ``scores``."""
    return list(dict.fromkeys(each.group.env for each in scores))


def task_scores(scores: Sequence[Scores], method: str, scale: str, frames: int) -> list[Array] | None:
    """One array of runs an environment, on ``scale``; None unless ``method`` has runs on every environment."""
    by_env = {each.group.env: each.values for each in scores if each.group.method == method and len(each.values)}
    if set(by_env) != set(envs_of(scores)):
        return None
    return [normalized(env, by_env[env], scale, frames) for env in envs_of(scores)]


def aggregates(scores: Sequence[Scores], scale: str, *, baseline: str | None = None, seed: int = 0) -> list[Aggregate]:
    """Every method that has runs on every environment, over all of them that have a score on ``scale``.

    A baseline that lacks an environment gives no probability of improvement. Without a common scale (``scale="none"``
    and several environments) only that probability, which needs none, is there.

    Raises:
        AnalysisError: ``baseline`` is no method.
    """
    if baseline is not None:
        known_method(baseline, methods_of(scores))
    scores = on_scale(scores, scale)
    methods, frames = methods_of(scores), longest(scores)
    tasks = {method: task_scores(scores, method, scale, frames) for method in methods}
    reference = None if baseline is None else tasks.get(baseline)
    names = list(AGGREGATES) if scale != "none" else []
    found = []
    for method, runs in tasks.items():
        if runs is None:
            continue
        estimates = {name: stratified_estimate(runs, AGGREGATES[name], seed=seed) for name in names}
        better = None
        if reference is not None and method != baseline:
            better = probability_of_improvement(runs, reference, seed=seed)
        found.append(Aggregate(method, sum(map(len, runs)), estimates, better))
    return found


def known_method(label: str, methods: Sequence[str]) -> str:
    """``label`` if it is one of ``methods``.

    Raises:
        AnalysisError: it is none; the message names the nearest.
    """
    if label in methods:
        return label
    near = difflib.get_close_matches(label, methods, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise AnalysisError(f"method must be one of {', '.join(map(repr, methods))}, got {label!r}.{hint}")


def longest(scores: Sequence[Scores]) -> int:
    """Environment frames of the longest run."""
    return max((frames for each in scores for frames in each.frames), default=0)
