"""Means over seeds with Student's t, and aggregates over tasks with stratified bootstraps (Agarwal et al., 2021).

A 95% percentile bootstrap of a mean covers .76, .83 and .90 at 3, 5 and 10 seeds. So the mean of one task has Student's
t interval, and an aggregate of fewer than 25 runs has none.

The estimators are those of "Deep RL at the edge of the statistical precipice" and its library rliable. They are
implemented here because rliable (1.2.0, August 2024, a source distribution) depends on pandas, statsmodels and seaborn,
needs the same number of runs on every task, and ignores its random state; the tests compare them with rliable.

Shapes: N runs over all tasks, T tasks, R resamples, K thresholds. Scores are an array of runs per task; tasks have
equal weights whatever their numbers of runs, which for equal numbers is rliable's weighting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrl_reg.lab.analysis.distributions import t_quantile
from torchrl_reg.lab.errors import UserError

#: Minimum number of runs over all tasks for a bootstrap interval of an aggregate: a 95% interval of the IQM over five
#: tasks covers .87 at 15 runs, .90 at 25 and .93 at 50 (normal scores).
BOOTSTRAP_RUNS = 25
Array = NDArray[np.float64]
#: Maps runs ``[R, N]``, concatenated over tasks, and the number of runs of each task to estimates ``[R]``.
Estimator = Callable[[Array, Sequence[int]], Array]


class Estimate(NamedTuple):
    """A point estimate and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def is_flat(self) -> bool:
        """True if the interval has no width."""
        return self.low == self.high == self.value


def mean(runs: Array, sizes: Sequence[int]) -> Array:
    """``mean_t mean_n x_tn``: the mean over tasks of the mean over runs.

    >>> mean(np.array([[1.0, 3.0, 10.0]]), [2, 1]).tolist()
    [6.0]
    """
    return _task_means(runs, sizes).mean(-1)


def median(runs: Array, sizes: Sequence[int]) -> Array:
    """``median_t mean_n x_tn``: the median over tasks of the mean over runs.

    >>> median(np.array([[1.0, 3.0, 10.0, -8.0]]), [2, 1, 1]).tolist()
    [2.0]
    """
    return np.median(_task_means(runs, sizes), axis=-1)


def interquartile_mean(runs: Array, sizes: Sequence[int]) -> Array:
    """Mean of the middle half of all runs of all tasks: drops ``floor(N / 4)`` runs at either end.

    With unequal numbers of runs, a run has weight ``N / (T n_t)``, and a total weight of ``floor(N / 4)`` is dropped at
    either end.

    >>> interquartile_mean(np.array([[0.0, 2.0, 4.0, 7.0]]), [1, 3]).round(4).tolist()
    [1.3333]
    >>> interquartile_mean(np.array([[9.0, 1.0, 2.0, 100.0]]), [2, 2]).tolist()
    [5.5]
    """
    counts = np.asarray(sizes, np.int64)
    count, cut = counts.sum(), counts.sum() // 4
    order = np.argsort(runs, axis=-1, kind="stable")
    weights = np.repeat(count / (len(counts) * counts), counts)[order]
    ends = weights.cumsum(-1)
    kept = np.clip(np.minimum(ends, count - cut) - np.maximum(ends - weights, cut), 0, None)
    return (np.take_along_axis(runs, order, axis=-1) * kept).sum(-1) / kept.sum(-1)


def optimality_gap(runs: Array, sizes: Sequence[int], gamma: float = 1.0) -> Array:
    """``gamma - mean_t mean_n min(x_tn, gamma)``: the mean shortfall from ``gamma``; lower is better.

    >>> optimality_gap(np.array([[0.5, 3.0]]), [1, 1]).tolist()
    [0.25]
    """
    return gamma - mean(np.minimum(runs, gamma), sizes)


#: Aggregates of scores normalized so that 1 is the reference agent, in the order of the tables.
AGGREGATES: dict[str, Estimator] = {
    "IQM": interquartile_mean,
    "median": median,
    "mean": mean,
    "optimality gap": optimality_gap,
}


def stratified_estimate(
    scores: Sequence[ArrayLike], estimator: Estimator, *, resamples: int = 10_000, level: float = 0.95
) -> Estimate:
    """``estimator`` with its interval, from fixed draws; see :func:`interval_band`.

    Args:
        scores: an array of runs ``[n_t]`` per task.
        estimator: one of this module, or a function with the same signature.
        resamples: R.
        level: of the interval.

    Raises:
        UserError: no task, a task without runs, or a score that is not a finite number.

    >>> [round(end, 3) for end in stratified_estimate([[1.0, 2.0, 3.0]], mean)]
    [2.0, -0.484, 4.484]
    """
    runs, sizes = _joined(scores)
    return Estimate(*interval_band(runs[None], sizes, estimator, resamples=resamples, level=level)[:, 0].tolist())


def interval_band(
    runs: Array, sizes: Sequence[int], estimator: Estimator, *, resamples: int = 2_000, level: float = 0.95
) -> Array:
    """Estimates ``[3, L]`` (value, low, high) for ``L`` sets of runs ``[L, N]``: frames of a curve, thresholds.

    The mean of one task has Student's t interval; all else a stratified percentile bootstrap if there are 25 runs, or
    else an interval of no width. All sets use the same resamples, so that bands of curves are smooth.
    """
    if estimator is mean and len(sizes) == 1:
        return mean_interval(runs.T, level)
    value = estimator(runs, sizes)
    if runs.shape[-1] < BOOTSTRAP_RUNS:
        return np.stack((value, value, value))
    counts = np.asarray(sizes, np.int64)
    # Indices [R, N] of the drawn runs, each within its task.
    picks = np.random.default_rng(0).integers(np.repeat(counts, counts), size=(resamples, counts.sum()))
    picks += np.repeat(_starts(sizes), counts)
    bands = [_interval(estimator(each[picks], sizes), level) for each in runs]
    return np.concatenate((value[None], np.reshape(bands, (-1, 2)).T))


def mean_interval(values: Array, level: float = 0.95) -> Array:
    """Mean over seeds ``[S, ...]`` and the ends of its interval (Student's t), ``[3, ...]``.

    The ends equal the mean for a single seed and for equal values.
    """
    seeds, value = len(values), values.mean(0)
    half = np.zeros_like(value)
    if seeds > 1:
        half = t_quantile((1 + level) / 2, seeds - 1) * values.std(0, ddof=1) / np.sqrt(seeds)
    return np.stack((value, value - half, value + half))


def probability_of_improvement(scores: Sequence[ArrayLike], baseline: Sequence[ArrayLike]) -> Estimate:
    """``mean_t P(X_t > Y_t)`` over pairs of a run and a run of the baseline; ties count half (Mann-Whitney U / (n m)).

    Both are resampled independently within each task; fewer than 25 runs have no interval.

    Args:
        scores, baseline: an array of runs per task, of the same tasks; numbers of runs may differ.

    Raises:
        UserError: unequal numbers of tasks, no task, a task without runs, or a score that is not a finite number.

    >>> probability_of_improvement([[1.0, 2.0], [0.0]], [[0.0, 1.0], [5.0]]).value
    0.4375
    """
    if len(scores) != len(baseline):
        raise UserError(f"scores and baseline must be of the same tasks, got {len(scores)} and {len(baseline)}.")
    _joined(scores), _joined(baseline)
    random, resamples = np.random.default_rng(0), 10_000
    value, resampled = 0.0, np.zeros(resamples)
    for one, other in zip(scores, baseline, strict=True):
        x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        counts_x, counts_y = (random.multinomial(n, np.full(n, 1 / n), size=resamples) for n in wins.shape)
        value += wins.mean() / len(scores)
        resampled += ((counts_x @ wins) * counts_y).sum(-1) / (wins.size * len(scores))
    runs = sum(len(np.asarray(each)) for each in (*scores, *baseline))
    ends = _interval(resampled).tolist() if runs >= BOOTSTRAP_RUNS else (float(value), float(value))
    return Estimate(float(value), *ends)


def performance_profile(scores: Sequence[ArrayLike], thresholds: ArrayLike, *, resamples: int = 2_000) -> Array:
    """Share of runs with a score above each threshold, averaged over tasks: the run-score distribution.

    Args:
        scores: an array of runs per task.
        thresholds: ``[K]``.

    Returns:
        ``[3, K]``: the share and the ends of its interval, in [0, 1].

    Raises:
        UserError: no task, a task without runs, or a score that is not a finite number.

    >>> performance_profile([[0.2, 0.8], [1.5]], [0.0, 0.5, 1.0])[0].tolist()
    [1.0, 0.75, 0.5]
    """
    runs, sizes = _joined(scores)
    above = (runs > np.asarray(thresholds, np.float64)[:, None]).astype(np.float64)
    # partial(mean), not mean, which interval_band would give a t interval.
    return interval_band(above, sizes, partial(mean), resamples=resamples)


def profile_thresholds(scores: Sequence[ArrayLike], scale: str, points: int = 301) -> tuple[Array, float]:
    """Thresholds ``[points]`` for a profile of all ``scores``, and the share of runs above the last one.

    The last threshold is the 90% quantile of the scores, no lower than 1 and, on the human scale, no higher than 8: a
    few games with scores of thousands of percent would hide all others.

    >>> profile_thresholds([[0.0] * 19, [50.0]], "human", points=3)
    (array([0. , 0.5, 1. ]), 0.05)
    """
    runs = np.concatenate([np.asarray(each, np.float64) for each in scores])
    cap = float(np.quantile(runs, 0.9))
    cap = max(1.0, min(cap, 8.0) if scale == "human" else cap)
    return np.linspace(min(0.0, float(runs.min())), cap, points), float((runs > cap).mean())


def beyond_note(share: float) -> str:
    """A note on the runs above the last threshold of a profile.

    >>> beyond_note(0.096), beyond_note(0.001)
    ('10% of runs lie beyond', '<1% of runs lie beyond')
    """
    return f"{f'{100 * share:.0f}' if share >= 0.005 else '<1'}% of runs lie beyond"


def _joined(scores: Sequence[ArrayLike]) -> tuple[Array, list[int]]:
    tasks = [np.asarray(task, np.float64) for task in scores]
    if not tasks or any(task.ndim != 1 or not len(task) for task in tasks):
        raise UserError(f"scores must hold one array of runs for each task, got {[t.shape for t in tasks]}.")
    runs = np.concatenate(tasks)
    if not np.isfinite(runs).all():
        raise UserError(f"scores must be finite numbers, got {runs[~np.isfinite(runs)][0]}.")
    return runs, [len(task) for task in tasks]


def _interval(resampled: Array, level: float = 0.95) -> Array:
    """The ends of the percentile interval over the first axis."""
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _task_means(runs: Array, sizes: Sequence[int]) -> Array:
    return np.add.reduceat(runs, _starts(sizes), axis=-1) / np.asarray(sizes)


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    counts = np.asarray(sizes, np.int64)
    return np.cumsum(counts) - counts
