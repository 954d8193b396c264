"""Quantiles against known values; coverage of intervals and error rates of verdicts by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchrl_reg.lab.analysis.distributions import beta_quantile, t_quantile, t_tail
from torchrl_reg.lab.analysis.inference import (
    Sample,
    at_cap,
    fisher,
    holm,
    power_of_equality,
    seeds_to_decide,
    share_estimate,
    verdict,
    welch,
)
from torchrl_reg.lab.analysis.statistics import mean_interval

#: Final greedy returns of shipped agents: C51 and QR-DQN on Acrobot, soft PQN on CartPole.
ACROBOT = np.array([-80.1, -90.7, -71.1, -77.9, -79.0, -73.6, -77.3, -85.4, -85.2, -81.9])
SKEWED = np.array([-78.6, -85.7, -110.7, -176.7, -93.2])
CAPPED = np.array([500.0, 500.0, 500.0, 500.0, 253.7, 241.0, 202.1, 500.0, 364.0, 500.0])


def test_quantiles_are_those_of_the_tables() -> None:
    known = {(0.975, 1): 12.7062047, (0.975, 4): 2.7764451, (0.95, 18): 1.7340636, (0.995, 60): 2.6602830}
    assert {key: t_quantile(*key) for key in known} == pytest.approx(known, rel=1e-7)
    assert t_quantile(0.975, 5.03) == pytest.approx(2.5649, rel=1e-3)  # Welch's degrees of freedom are no integers
    assert (t_tail(0.0, 3), t_tail(-2.7764451, 4)) == pytest.approx((0.5, 0.975))
    assert beta_quantile(0.5, 2, 3) == pytest.approx(0.3857276, abs=1e-6)
    ends = {(5, 5): (0.4782, 1.0), (0, 10): (0.0, 0.3085), (19, 20): (0.7513, 0.9987)}
    assert {key: share_estimate(*key)[1:] for key in ends} == {k: pytest.approx(v, abs=1e-4) for k, v in ends.items()}


def test_of_seeds_at_a_cap_the_share_is_stated() -> None:
    """500 [500, 500] of five seeds allows that 52% fail."""
    assert at_cap("cartpole", [500.0] * 5) == (1.0, pytest.approx(0.4782, abs=1e-4), 1.0)
    assert at_cap("cartpole", [499.0] * 5) is None and at_cap("acrobot", [500.0]) is None


def test_welch_and_fisher_by_hand() -> None:
    found = welch(Sample.from_scores(ACROBOT), Sample.from_scores(SKEWED))
    error = math.sqrt(ACROBOT.var(ddof=1) / 10 + SKEWED.var(ddof=1) / 5)
    assert (found.value, found.error) == pytest.approx((ACROBOT.mean() - SKEWED.mean(), error))
    assert 4 < found.df < 5 and found.interval.low < 0 < found.interval.high
    assert found.p == pytest.approx(0.18088, abs=1e-5)  # scipy.stats.ttest_ind(equal_var=False)
    # 3 of 3 against 0 of 3: one of the 20 ways to place three successes, and its mirror
    assert fisher((3, 3), (0, 3)) == pytest.approx(2 / 20) and fisher((2, 4), (3, 6)) == 1.0
    assert holm([0.01, math.nan, 0.03]) == pytest.approx([0.02, math.nan, 0.03], nan_ok=True)


def test_a_verdict_needs_seeds_and_a_deviation() -> None:
    same = welch(Sample(1.0, 0.0, 3), Sample(1.0, 0.0, 3))
    assert (same.p, verdict(same, margin=0.5).word, verdict(same).word) == (1.0, "equal", "undecided")
    assert verdict(welch(Sample(2.0, 0.0, 3), Sample(1.0, 0.0, 3))).word == "above"
    alone = verdict(welch(Sample(2.0, math.nan, 1), Sample(1.0, 1.0, 3)), margin=9.0)
    assert (alone.word, alone.seeds, str(alone)) == ("undecided", None, "undecided")
    near = verdict(welch(Sample(1.0, 1.0, 5), Sample(0.0, 1.0, 5)))
    assert str(near) == f"undecided ({seeds_to_decide(1.0, 1.0)} seeds would decide)"
    assert seeds_to_decide(0.001, 1.0) is None, "beyond 1,000"


@pytest.mark.parametrize(("shape", "nominal"), [(None, 0.95), (ACROBOT, 0.94), (SKEWED, 0.79), (CAPPED, 0.85)])
def test_intervals_cover_what_they_state(shape: np.ndarray | None, nominal: float) -> None:
    """Five seeds: .95 for normal scores, less for skewed ones (as the page states), least at a cap."""
    random, truth = np.random.default_rng(0), 0.0 if shape is None else float(shape.mean())
    draws = random.normal(size=(5, 4_000)) if shape is None else random.choice(shape, (5, 4_000))
    _, low, high = mean_interval(draws)
    covered = float(np.mean((low <= truth) & (truth <= high)))
    assert covered >= nominal - 0.02 and (shape is not None or covered <= 0.965)


def words(gap: float, seeds: tuple[int, int], margin: float | None, trials: int = 600) -> dict[str, float]:
    """Shares of verdicts on normal scores with a true ``gap`` in standard deviations."""
    random = np.random.default_rng(1)
    draws = (random.normal(gap, 1, (trials, seeds[0])), random.normal(0, 1, (trials, seeds[1])))
    found = [
        verdict(welch(Sample.from_scores(x), Sample.from_scores(y)), margin=margin).word
        for x, y in zip(*draws, strict=True)
    ]
    return {word: found.count(word) / trials for word in ("above", "below", "equal", "undecided")}


def test_false_verdicts_are_rare_and_power_is_as_stated() -> None:
    """The figures of recipes/claims.yaml and of data/published.yaml."""
    null = words(0.0, (5, 5), 1.0)
    assert null["above"] + null["below"] < 0.07
    assert words(1.0, (10, 10), 1.0)["equal"] < 0.07, "a true gap of the margin passes as equal in 5% of cases"
    assert words(2.0, (5, 5), 1.0)["equal"] < 0.005, "intervals that meet let it pass in 26%"
    assert words(1.0, (5, 5), None)["above"] == pytest.approx(0.27, abs=0.05)
    assert words(2.0, (5, 5), None)["above"] == pytest.approx(0.76, abs=0.05)
    for seeds, share in (((5, 3), 0.04), ((10, 10), 0.38), ((20, 20), 0.84)):
        assert power_of_equality(1.0, *seeds) == pytest.approx(share, abs=0.02)
    assert words(0.0, (10, 10), 1.0)["equal"] == pytest.approx(0.38, abs=0.06)


def test_the_seeds_that_would_decide_do() -> None:
    assert seeds_to_decide(1.0, 1.0) == 17
    assert words(1.0, (17, 17), None)["above"] == pytest.approx(0.8, abs=0.05)
