"""The convergence theorem of E2W, and errors of the bandit."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.planning import softmax_bandit

MEAN = [0.1, 0.5, 0.3, 0.8]


@pytest.mark.parametrize(
    ("times", "repetitions", "tolerance"),
    [
        ([300, 1000], 2500, 0.15),
        pytest.param([10_000], 20_000, 0.05, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_errors_come_near_their_limits(times: list[int], repetitions: int, tolerance: float) -> None:
    """The theorem: of t MSE(U) and of t MSE(F)."""
    run = softmax_bandit(MEAN, noise=0.3, tau=0.5, epsilon=0.1, record_at=times, num_repetitions=repetitions, seed=1)
    exact = 0.3**2 / 0.5**2 * (torch.tensor(MEAN, dtype=torch.float64) / 0.5).exp().sum().square()
    assert run.limit_u == pytest.approx(exact.item()) and run.limit_value == pytest.approx(0.09)
    for errors, limit in ((run.error_u, run.limit_u), (run.error_value, run.limit_value)):
        assert (run.time * errors / limit - 1).abs().max() < tolerance


def test_uniform_sampling_is_worse() -> None:
    run = softmax_bandit(MEAN, noise=0.3, tau=0.2, epsilon=1e9, record_at=[500], num_repetitions=1000, seed=1)
    assert run.time * run.error_u > 1.5 * run.limit_u


GOOD = {"noise": 0.3, "tau": 0.5, "epsilon": 0.1, "record_at": [5], "num_repetitions": 3, "seed": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 0.0}, "noise must be a finite number > 0, got 0.0"),
        ({"tau": -1.0}, "tau must be a finite number > 0, got -1.0"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0, got 0.0"),
        ({"record_at": []}, r"record_at must list rising times >= 1, got \[\]"),
        ({"record_at": [5, 3]}, r"record_at must list rising times >= 1, got \[5, 3\]"),
        ({"record_at": [0, 3]}, r"record_at must list rising times >= 1, got \[0, 3\]"),
        ({"num_repetitions": 0}, "num_repetitions must be at least 1, got 0"),
        ({"mean": []}, r"mean must list the finite mean rewards of the arms, got \[\]"),
    ],
)
def test_bad_input_is_one_sentence(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        softmax_bandit(**{"mean": MEAN, **GOOD, **change})
