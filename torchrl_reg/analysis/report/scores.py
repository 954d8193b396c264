"""The numbers of a report: summary table, final scores, learning curves, profiles and diagnostics of groups of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis import statistics
from torchrl_reg.analysis.charts import Line
from torchrl_reg.analysis.curves import mean_curve, profile_lines, seed_values
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.scores import Scoreboard, scale_of
from torchrl_reg.analysis.statistics import Array, stratified_estimate

#: Heading of the column over all environments.
ALL = "all, scaled IQM"
#: With more environments than this, and than methods, they are the rows; with more methods these are sorted.
_MOST_COLUMNS, _MOST_UNSORTED = 6, 8
_RESAMPLES = 2_000
#: Points of a curve; more would only make the file larger.
_CURVE_POINTS, _DIAGNOSTIC_POINTS = 200, 120
_NOT_DIAGNOSTICS = frozenset(
    {"event", "frames", "updates", "episodes", "fps", "wall_seconds", "eval_seconds", "diverged_frames"}
)
_FIRST = ("return_mean", "loss", "entropy", "kl", "action_gap", "bonus", "bonus_clipped", "soft_gap", "td_error")


def learning_curve(group: Group, column: str, series: int) -> Line | None:
    """Mean over the seeds as far as all of them got, with intervals, and dashed beyond; None without evaluations."""
    curves = [curve for run in group.runs if len((curve := run.evaluations(column))[0])]
    if not curves:
        return None
    every, values = seed_values(curves)
    common = ~np.isnan(values).any(0)
    beyond = every > min(frames[-1] for frames, _ in curves)
    x, shared = _averaged(every[common], values[:, common].T, _CURVE_POINTS)
    band = statistics.stratified_bootstrap(shared, [len(curves)], statistics.mean, resamples=_RESAMPLES)
    more = _averaged(every[beyond], np.nanmean(values[:, beyond], 0), _CURVE_POINTS)
    low, high = band[1:] if len(curves) > 1 else (None, None)
    return Line(f"{group.method} ({len(curves)})", series, x, band[0], low, high, *more)


def ranked(sweep: Sweep) -> list[str]:
    """Methods from the best down, by mean rank of their last evaluations over the environments."""
    orders = []
    for env in sweep.envs:
        ends = {
            group.method: [values[-1] for run in group.runs if len(values := run.evaluations(sweep.column)[1])]
            for group in sweep.of_env(env)
        }
        orders.append(sorted(ends, key=lambda name: -np.mean(ends[name]) if ends[name] else math.inf))  # best first
    ranks = {name: [order.index(name) for order in orders if name in order] for name in sweep.methods}
    return sorted(ranks, key=lambda name: np.mean(ranks[name]))


def diagnostic_names(groups: Iterable[Group]) -> list[str]:
    """Columns of the training rows that move, returns and losses first."""
    runs = [run for group in groups for run in group.runs]
    there = dict.fromkeys(name for run in runs for name in run.names("train") if len(run.training(name)[1]))
    names = [name for name in there if name not in _NOT_DIAGNOSTICS]
    moving = [name for name in names if np.ptp(np.concatenate([run.training(name)[1] for run in runs]))]
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(moving, key=lambda name: rank.get("loss" if name.startswith("loss") else name, 99))


def diagnostic_line(group: Group, name: str, series: int) -> Line | None:
    """Mean of a training column over the seeds that got there."""
    curves = [curve for run in group.runs if len((curve := run.training(name))[0])]
    return Line(group.method, series, *_averaged(*mean_curve(curves), _DIAGNOSTIC_POINTS)) if curves else None


def compared(sweep: Sweep) -> tuple[str, dict[str, list[Array]]]:
    """A scale, and on it by method the final scores on every environment where any method has some.

    0 is a random policy and 1 a human (Atari) or SAC (MuJoCo); elsewhere 0 is the worst finished run of an environment
    and 1 its best. Nothing where fewer than two environments or methods would be compared.
    """
    envs = {each.group.env for each in sweep.scores if len(each.values)}
    scale = scale_of(sorted(envs)) if envs else "none"
    scale = "range" if scale == "none" else scale
    board = Scoreboard([each for each in sweep.scores if each.group.env in envs], scale)
    found = board.comparable()
    return scale, found if len(board.on_scale().envs) > 1 and len(found) > 1 else {}


def profiles(sweep: Sweep, points: int = 301) -> tuple[list[Line], float]:
    """Share of runs above each score on the scale of :func:`compared`, and the share of runs right of the profile."""
    scale, found = compared(sweep)
    lines, beyond = profile_lines(found, scale, resamples=_RESAMPLES, points=points)
    return [replace(line, series=sweep.methods.index(line.label)) for line in lines], beyond


def _averaged(x: NDArray[Any], y: Array, count: int) -> tuple[NDArray[Any], Array]:
    """At most ``count`` points: means of runs of neighbours of ``y [E, ...]``, each at the last of its places."""
    if len(x) <= count:
        return x, y
    starts = np.linspace(0, len(x), count + 1).astype(int)[:-1]
    sizes = np.diff([*starts, len(x)])
    means = np.add.reduceat(y, starts, axis=0) / sizes.reshape(-1, *[1] * (y.ndim - 1))
    return x[starts + sizes - 1], means


def summary_table(sweep: Sweep) -> dict[str, Any]:
    """Final scores with intervals, numbers of seeds and commits; many methods from the best mean rank down.

    For the template: ``columns`` of cells by method; by method its place among them (``series``), finished ``seeds``
    and ``commits``; and ``tall``, whether the page swaps rows and columns.
    """
    over_all = compared(sweep)[1]
    columns = {ALL: over_all} if over_all else {}
    for env in sweep.envs:
        columns[env] = {each.group.method: [each.values] for each in sweep.scores if each.group.env == env}
    methods = ranked(sweep) if len(sweep.methods) > _MOST_UNSORTED else sweep.methods
    groups = {method: [group for group in sweep.groups if group.method == method] for method in methods}
    return {
        "columns": {env: _cells(runs, env) for env, runs in columns.items()},
        "series": {method: sweep.methods.index(method) for method in methods},
        "seeds": {method: _seeds(method, sweep) for method in methods},
        "commits": {m: dict.fromkeys(commit for group in of for commit in group.commits) for m, of in groups.items()},
        "tall": len(columns) > max(_MOST_COLUMNS, len(methods)),
    }


def _cells(column: Mapping[str, list[Array]], name: str) -> dict[str, dict[str, Any] | str]:
    """By method its score, whether of ``several`` runs and the ``best``, and a ``bar``; or ``"unfinished"``.

    A best score is one whose interval lies above those of all others; that of one run has no width and says nothing.
    A bar is low, high and value in percent of the column's span.
    """
    estimator = statistics.interquartile_mean if name == ALL else statistics.mean
    counts = {method: sum(map(len, runs)) for method, runs in column.items()}
    there = {m: stratified_estimate(column[m], estimator, resamples=_RESAMPLES) for m, count in counts.items() if count}
    low, high = min((e.low for e in there.values()), default=0.0), max((e.high for e in there.values()), default=0.0)
    found: dict[str, dict[str, Any] | str] = dict.fromkeys(column, "unfinished")
    for method, score in there.items():
        others = [other for other in there if other != method]
        above = all(score.low > there[other].high for other in others)
        best = bool(others) and above and all(counts[each] > 1 for each in there)
        ends = ((end - low) / (high - low) * 100 for end in (score.low, score.high, score.value)) if high > low else ()
        found[method] = {"score": score, "several": counts[method] > 1, "best": best, "bar": tuple(ends)}
    return found


def _seeds(method: str, sweep: Sweep) -> list[tuple[str, str]]:
    """Finished of all, per environment where a few environments differ."""
    scores = [each for each in sweep.scores if each.group.method == method]
    counts = [(len(each.values), len(each.group.runs)) for each in scores]
    texts = [str(total) if done == total else f"{done} of {total}" for done, total in counts]
    if len(set(texts)) == 1:
        return [(texts[0], "")]
    if len(scores) > _MOST_COLUMNS:
        return [(f"{sum(done for done, _ in counts)} of {sum(total for _, total in counts)}", "runs")]
    return [(text, each.group.env) for text, each in zip(texts, scores, strict=True)]
