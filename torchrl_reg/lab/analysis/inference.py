"""Statistics of a few seeds: intervals of shares, differences, equality, and the number of seeds that would decide.

Shares have Clopper and Pearson's interval, differences Welch's t with Holm's correction, equality two one-sided tests
within a margin. Intervals of means are those of :mod:`torchrl_reg.lab.analysis.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from torchrl_reg.lab.analysis.distributions import beta_quantile, t_quantile, t_tail
from torchrl_reg.lab.analysis.statistics import Estimate

#: Maximum returns. Where seeds reach one, the mean has no interval: Student's t covers .66 there at five seeds.
CAPS = {"cartpole": 500.0, "mujoco/inverted_pendulum": 1000.0}
#: The largest number of seeds per arm that :func:`seeds_to_decide` returns.
_MAX_SEEDS = 1_000


class Sample(NamedTuple):
    """Mean, standard deviation over seeds, and number of seeds."""

    mean: float
    sd: float
    seeds: int

    @classmethod
    def from_scores(cls, values: ArrayLike) -> Sample:
        """The sample of scores ``[n]``, one per seed; a single score has deviation NaN."""
        array = np.asarray(values, np.float64)
        sd = float(array.std(ddof=1)) if len(array) > 1 else math.nan
        return cls(float(array.mean()), sd, len(array))


def share_estimate(count: int, seeds: int) -> Estimate:
    """A share with its 95% interval (Clopper and Pearson).

    >>> [round(end, 3) for end in share_estimate(5, 5)]
    [1.0, 0.478, 1.0]
    """
    low = beta_quantile(0.025, count, seeds - count + 1) if count else 0.0
    high = beta_quantile(0.975, count + 1, seeds - count) if count < seeds else 1.0
    return Estimate(count / seeds, low, high)


def at_cap(env: str, values: ArrayLike) -> Estimate | None:
    """The share of seeds at the cap of ``env``; None without a cap, or if no seed reaches it."""
    count = int(np.sum(np.asarray(values) >= CAPS.get(env, math.inf)))
    return share_estimate(count, len(np.asarray(values))) if count else None


@dataclass(frozen=True)
class Difference:
    """A difference of two means (Welch's t).

    Args:
        value: the difference.
        error, df: standard error and degrees of freedom; NaN if a sample has a single seed.
        sd: standard deviation over seeds, pooled over both samples.
    """

    value: float
    error: float
    df: float
    sd: float

    @cached_property
    def p(self) -> float:
        """The two-sided p-value of no difference."""
        if not self.error > 0:
            return math.nan if math.isnan(self.error) else float(self.value == 0)
        return 2 * t_tail(abs(self.value) / self.error, self.df)

    @cached_property
    def interval(self) -> Estimate:
        """The difference with its 95% interval."""
        half = t_quantile(0.975, self.df) * self.error if self.error > 0 else self.error
        return Estimate(self.value, self.value - half, self.value + half)

    def equal_p(self, margin: float) -> float:
        """The p-value of equality within ``margin``: the larger of two one-sided tests."""
        if not self.error > 0:
            return math.nan if math.isnan(self.error) else float(abs(self.value) >= margin)
        return t_tail((margin - abs(self.value)) / self.error, self.df)


def welch(x: Sample, y: Sample) -> Difference:
    """The mean of ``x`` minus that of ``y``.

    >>> found = welch(Sample(2.0, 1.0, 10), Sample(1.0, 2.0, 5))
    >>> round(found.error, 4), round(found.df, 3), round(found.p, 4)
    (0.9487, 5.028, 0.3398)
    """
    parts, freedom = [each.sd**2 / each.seeds for each in (x, y)], x.seeds + y.seeds - 2
    error = math.sqrt(sum(parts))
    if math.isnan(error):
        return Difference(x.mean - y.mean, error, math.nan, math.nan)
    sd = math.sqrt(sum((each.seeds - 1) * each.sd**2 for each in (x, y)) / freedom)
    shares = [part**2 / (each.seeds - 1) for part, each in zip(parts, (x, y), strict=True)]
    return Difference(x.mean - y.mean, error, error**4 / sum(shares) if error > 0 else float(freedom), sd)


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values ``ps`` corrected for multiple tests (Holm 1979); NaN (not tested) is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((place for place, p in enumerate(ps) if not math.isnan(p)), key=lambda place: ps[place])
    corrected, highest = list(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[place]))
        corrected[place] = highest
    return corrected


def fisher(one: tuple[int, int], other: tuple[int, int]) -> float:
    """The two-sided p-value of equal shares, each as (count, seeds), by Fisher's exact test.

    >>> round(fisher((19, 20), (10, 20)), 5)
    0.00334
    """
    (a, n), (b, m) = one, other
    total = a + b
    weights = [math.comb(n, k) * math.comb(m, total - k) for k in range(max(0, total - m), min(n, total) + 1)]
    here = math.comb(n, a) * math.comb(m, b)
    return min(1.0, sum(weight for weight in weights if weight <= here) / sum(weights))


@dataclass(frozen=True)
class Verdict:
    """The verdict on a difference.

    Args:
        word: ``above``, ``below``, ``equal`` or ``undecided``.
        found, margin: the difference and the margin, if undecided.
    """

    word: str
    found: Difference | None = None
    margin: float | None = None

    @cached_property
    def seeds(self) -> int | None:
        """Seeds per arm that would decide; None beyond 1,000, or if a deviation is unknown."""
        return None if self.found is None else seeds_to_decide(self.found.value, self.found.sd, self.margin)

    def __str__(self) -> str:
        if self.word != "undecided" or self.seeds is None:
            return self.word
        return f"undecided ({self.seeds:,} seeds would decide)"


def verdict(found: Difference, p: float | None = None, margin: float | None = None) -> Verdict:
    """``above`` or ``below`` at 5%, else ``equal`` if both one-sided tests pass at 5%, else ``undecided``.

    Args:
        found: the difference.
        p: its p-value corrected by :func:`holm`, if several are tested; by default its own.
        margin: margin of equality, in the unit of the scores; None for no test of equality.
    """
    # First: a difference may also lie within the margin, and is the stronger verdict.
    if (found.p if p is None else p) < 0.05:
        return Verdict("above" if found.value > 0 else "below")
    if margin is not None and found.equal_p(margin) < 0.05:
        return Verdict("equal")
    return Verdict("undecided", found, margin)


def seeds_to_decide(gap: float, sd: float, margin: float | None = None, power: float = 0.8) -> int | None:
    """Seeds per arm that show a true ``gap``, or equality of equal arms within ``margin``, with probability ``power``.

    >>> seeds_to_decide(1.0, 1.0), seeds_to_decide(0.0, 1.0), seeds_to_decide(0.0, 1.0, margin=1.0)
    (17, None, 18)
    """
    if math.isnan(sd) or sd == 0:
        return None
    low, high = 2, _MAX_SEEDS
    if _power(gap, sd, margin, high) < power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(gap, sd, margin, middle) >= power else (middle, high)
    return high


def _power(gap: float, sd: float, margin: float | None, seeds: int) -> float:
    """The power of Welch's test at a true ``gap``, or of equality within ``margin`` at no gap; the larger one."""
    error, df = sd * math.sqrt(2 / seeds), 2 * seeds - 2
    shown = _normal(abs(gap) / error - t_quantile(0.975, df))
    reach = 0.0 if margin is None else margin / error - t_quantile(0.95, df)
    return max(shown, 2 * _normal(reach) - 1)


def _normal(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def power_of_equality(margin: float, seeds: int, others: int, gap: float = 0.0, draws: int = 4_000) -> float:
    """Probability that two arms ``gap`` apart pass as equal within ``margin``, both in standard deviations of a seed.

    Simulated with fixed draws: normal scores, :func:`welch` and both one-sided tests at 5%.

    >>> [round(power_of_equality(1.0, *seeds), 1) for seeds in ((5, 3), (10, 10), (20, 20))]
    [0.0, 0.4, 0.9]
    """
    random = np.random.default_rng(0)
    distance = np.abs(random.normal(gap, math.sqrt(1 / seeds + 1 / others), draws))
    parts = [random.chisquare(n - 1, draws) / (n - 1) / n for n in (seeds, others)]
    error = np.sqrt(parts[0] + parts[1])
    df = error**4 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (others - 1))
    tails = map(t_tail, (margin - distance) / error, df)
    return float(np.mean([tail < 0.05 for tail in tails]))
