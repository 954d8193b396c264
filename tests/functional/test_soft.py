"""Soft values and policies, entropy, divergence, gaps, bonuses and the Bellman temperature.

Literal numbers, identities, extremes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchrl_reg.functional import (
    action_gap,
    advantage_gap,
    bellman_temperature,
    kl_divergence,
    munchausen_bonus,
    persistent_advantage_gap,
    policy_entropy,
    scaled_log_policy,
    soft_gap,
    soft_policy,
    soft_value,
    soft_value_and_log_policy,
    soft_value_and_policy,
)
from torchrl_reg.functional.soft import action_index, finite_action_gap, gather_action

Q = torch.tensor([1.0, 2.0], dtype=torch.float64)
LOG_PRIOR = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
LOWEST = torch.finfo(torch.float32).min


def random_q(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(actual: torch.Tensor, expected: object, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


def every(q, tau, **options):
    """Value, gap, scaled log-policy and policy, each from its own function."""
    return [function(q, tau, **options) for function in (soft_value, soft_gap, scaled_log_policy, soft_policy)]


# By hand at tau = 0.5: F = ln(e^2 + e^4) / 2, and with the prior ln(e^2 / 4 + 3 e^4 / 4) / 2.
@pytest.mark.parametrize("tau", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
@pytest.mark.parametrize(
    ("log_prior", "value", "odds"), [(None, 2.0634640055214863, 1), (LOG_PRIOR, 1.8782208778236271, 3)]
)
def test_literal_numbers(log_prior, value, odds, tau):
    policy = [1 / (1 + odds * math.exp(2)), 1 - 1 / (1 + odds * math.exp(2))]
    log_pi = [0.5 * math.log(x) for x in policy]
    for found, expected in zip(every(Q, tau, log_prior=log_prior), (value, value - 2, log_pi, policy), strict=True):
        close(found, expected, 1e-10)


@pytest.mark.parametrize("tau", [0.03, 0.7, 5.0])
@pytest.mark.parametrize("with_prior", [False, True])
def test_value_is_what_its_policy_is_worth(tau, with_prior):
    q = random_q(7, 5)
    options = {"log_prior": random_q(5).log_softmax(-1)} if with_prior else {}
    value, gap, tau_log_pi, pi = every(q, tau, **options)
    close(value, (pi * (q - tau * (pi.log() - options.get("log_prior", 0.0)))).sum(-1))
    close(tau_log_pi, tau * pi.log(), 1e-10)
    close(gap, value - q.amax(-1))
    close(pi.sum(-1), torch.ones(7))
    both = soft_value_and_log_policy(q, tau, **options)
    torch.testing.assert_close(both, (value, tau_log_pi), rtol=0, atol=0)
    if not with_prior:
        torch.testing.assert_close(soft_value_and_policy(q, tau), (value, pi), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tau", [0.0, *(torch.zeros((), dtype=x) for x in (torch.half, torch.float, torch.double))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_temperature_is_the_hard_limit(tau, dtype):
    q = torch.tensor([[1.0, 3.0, 3.0], [-2.0, -1.0, -7.0]], dtype=dtype, requires_grad=True)
    value, gap, tau_log_pi, pi = every(q, tau)
    assert value.dtype == tau_log_pi.dtype == dtype
    close(torch.cat((value, gap)), [3.0, -1.0, 0.0, 0.0], 0.0)
    close(tau_log_pi, [[-2.0, 0.0, 0.0], [-1.0, 0.0, -6.0]], 0.0)
    close(pi, [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], 0.0)
    close(torch.autograd.grad(value.sum(), q)[0], pi, 0.0)
    log_prior = torch.tensor([0.4, 0.0, 0.6]).log()
    value, _, tau_log_pi, _ = every(q, tau, log_prior=log_prior)
    close(value, [3.0, -2.0], 0.0)
    close(tau_log_pi, [[-2.0, -math.inf, 0.0], [0.0, -math.inf, -5.0]], 0.0)
    close(soft_policy(torch.ones(3), tau, log_prior=log_prior), [0.4, 0.0, 0.6], 1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("tau", [1e-4, 0.03])
def test_float32_is_right_at_large_values(tau, sign):
    q32 = (sign * 1e4 + tau * torch.tensor([0.0, -9.765625, -30.0], dtype=torch.float64)).float()
    q64 = q32.double()  # the numbers that float32 can hold
    atols = (1e-3, 1e-6 * tau, 1e-5 * tau, 1e-6)
    for found, exact, atol in zip(every(q32, tau), every(q64, tau), atols, strict=True):
        close(found, exact, atol)
    close(soft_value(q64, tau), tau * torch.logsumexp(q64 / tau, -1), 1e-9)
    close(scaled_log_policy(q64, tau), tau * torch.log_softmax(q64 / tau, -1), 1e-9)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("tau", [1e-45, 1e-38, 1e-30, 1e-4])
def test_tiny_temperatures_are_finite_with_finite_gradients(tau, as_tensor, with_prior):
    q = torch.tensor([[1e4, 1e4, -1e4], [0.0, 1e-3, 2e-3], [5.0, 5.0, 5.0]], requires_grad=True)
    log_prior = torch.tensor([0.2, 0.3, 0.5]).log() if with_prior else None
    value, _, tau_log_pi, pi = every(q, torch.tensor(tau) if as_tensor else tau, log_prior=log_prior)
    close(value, q.amax(-1), 4 * tau)
    close(tau_log_pi, q - q.amax(-1, keepdim=True), 4 * tau)
    close(pi.sum(-1), torch.ones(3), 1e-6)
    close(pi[0], [2 / 5, 3 / 5, 0.0] if with_prior else [0.5, 0.5, 0.0], 1e-6)
    total = value.sum() + tau_log_pi.mul(torch.arange(3.0)).sum() + pi[:, 0].sum()
    assert torch.autograd.grad(total, q)[0].isfinite().all()


@pytest.mark.parametrize("masked_by", [-math.inf, LOWEST, "prior"])
@pytest.mark.parametrize("tau", [0.0, 1e-38, 0.5, torch.tensor(0.5)])
def test_masked_actions_are_ignored_in_value_and_gradient(masked_by, tau):
    q = torch.tensor([1.0, 9.0, 2.0, -3.0], requires_grad=True)  # the best action is the one without support
    log_prior = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().requires_grad_()
    kept, leaves, options, free = [0, 2, 3], [q], {}, {}
    masked = q
    if masked_by == "prior":
        leaves, options, free = [q, log_prior], {"log_prior": log_prior}, {"log_prior": log_prior.detach()[kept]}
    else:
        masked = torch.where(torch.tensor([False, True, False, False]), masked_by, q)
    value, gap, tau_log_pi, pi = every(masked, tau, **options)
    expected = every(q.detach()[kept], tau, **free)
    for found, wanted in zip((value, gap, tau_log_pi[kept], pi[kept]), expected, strict=True):
        close(found, wanted, 1e-6 if masked_by == "prior" else 0.0)
    assert pi[1] == 0 and tau_log_pi[1] <= LOWEST
    for gradient in torch.autograd.grad(value + pi[0] + tau_log_pi[kept].sum(), leaves):
        assert gradient.isfinite().all() and gradient[1] == 0


def test_a_strong_prior_decides_and_does_not_overflow():
    q, prior = torch.full((2,), 1e4), torch.tensor([0.9, 0.1])
    close(soft_policy(q, 1e-4, log_prior=prior.log()), prior, 1e-6)
    close(scaled_log_policy(q, 1e-4, log_prior=prior.log()), 1e-4 * prior.log(), 1e-9)
    q, log_prior = torch.tensor([1.0, 0.0]), torch.tensor([-2000.0, 0.0])
    close(soft_value(q, 0.5, log_prior=log_prior), 0.0, 1e-6)
    close(scaled_log_policy(q, 0.5, log_prior=log_prior), [-999.0, 0.0], 1e-4)


def test_any_dimension_can_hold_the_actions():
    q, log_prior = random_q(3, 5, 2), random_q(5, 1).log_softmax(0)
    found = every(q, 0.4, log_prior=log_prior, dim=1)
    expected = every(q.movedim(1, -1), 0.4, log_prior=log_prior.squeeze(-1))
    for one, other in zip(found, expected, strict=True):
        close(one, other if one.ndim == 2 else other.movedim(-1, 1))


# -- entropy and divergence -----------------------------------------------------------------------------------------


def test_entropy_treats_zero_probability_as_zero():
    pi = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], requires_grad=True)
    entropy = policy_entropy(pi)
    close(entropy, [math.log(2.0), 0.0, math.log(4.0)], 1e-6)
    close(policy_entropy(pi.T, dim=0), entropy, 0.0)
    (gradient,) = torch.autograd.grad(entropy.sum(), pi)
    assert gradient.isfinite().all()
    close(gradient[0, :2], [math.log(2.0) - 1.0] * 2, 1e-6)


def test_kl_by_hand_along_any_dimension():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 0.3, 0.5])
    expected = [0.5 * math.log(2.5) + 0.25 * math.log(5 / 6) + 0.25 * math.log(0.5), 0.0]
    rows = torch.stack([p, q]).log()
    close(kl_divergence(rows, q.log()), expected, 1e-6)
    close(kl_divergence(rows.T, q.log().unsqueeze(-1), dim=0), expected, 1e-6)


def test_kl_with_zero_probabilities():
    log_p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log().requires_grad_()
    log_q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log().requires_grad_()
    divergence = kl_divergence(log_p, log_q)
    close(divergence, [math.log(2.0), math.inf], 1e-6)
    for gradient in torch.autograd.grad(divergence[0], [log_p, log_q]):
        assert gradient[0].isfinite().all()


# -- gaps, bonus and the action taken -------------------------------------------------------------------------------


Q_BY_STATE = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, -5.0]])
NEXT_Q = torch.tensor([[3.0, 2.0, 2.5], [7.0, 8.0, 6.0]])
ACTION = torch.tensor([2, 1])


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5)])
@pytest.mark.parametrize("clip_min", [-0.3, torch.tensor(-0.3, dtype=torch.float64), None])
def test_bonus_clips_before_alpha(alpha, clip_min):
    tau_log_pi_a = torch.tensor([-0.1, -0.3, -2.0, 0.2])
    lowest = -1.0 if clip_min is None else -0.15
    expected = torch.tensor([-0.05, -0.15, lowest, 0.1])  # ln(pi / rho) and a density's logarithm may be positive
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, alpha, clip_min), expected)


def test_gaps_by_hand():
    q = torch.tensor([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0], [-math.inf, -1.0, -2.0]])
    assert action_gap(q.expand(2, 3, 3)).tolist() == [[1.5, 0.0, 1.0]] * 2
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert finite_action_gap(q.to(dtype).clamp(min=torch.finfo(dtype).min)).tolist() == [1.5, 0.0, 1.0]
        alone = torch.tensor([[1.0, torch.finfo(dtype).min]], dtype=dtype)
        assert finite_action_gap(alone).tolist() == finite_action_gap(alone[:, :1]).tolist() == [0.0]
    assert advantage_gap(Q_BY_STATE.expand(5, 2, 3), ACTION.expand(5, 2)).tolist() == [[2.0, 1.0]] * 5
    assert advantage_gap(Q_BY_STATE, Q_BY_STATE.argmax(-1)).tolist() == [0.0, 0.0]


def test_persistent_gap_is_the_smaller_one_unless_terminated():
    # Gaps here: 2 and 1; at the next state: 3 - 2.5 and 8 - 8, or 9 times that.
    going_on, ended = torch.tensor([False, False]), torch.tensor([True, False])
    assert persistent_advantage_gap(Q_BY_STATE, NEXT_Q, ACTION, going_on).tolist() == [0.5, 0.0]
    assert persistent_advantage_gap(Q_BY_STATE, 9 * NEXT_Q, ACTION, going_on).tolist() == [2.0, 0.0]
    garbage = NEXT_Q.clone()
    garbage[0] = math.nan
    assert persistent_advantage_gap(Q_BY_STATE, garbage, ACTION, ended).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (4, 1)])
def test_every_way_to_store_an_action_is_the_same_index(shape: tuple[int, ...]) -> None:
    index = torch.randint(3, shape, generator=torch.Generator().manual_seed(0))
    one_hot = nn.functional.one_hot(index, 3)
    q = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1))
    q = torch.where(one_hot.bool(), q, -math.inf)  # all other actions are forbidden
    stored = [(index, "categorical"), (index.unsqueeze(-1), "categorical")]
    stored += [(one_hot, "one_hot"), (one_hot.bool(), "one_hot"), (one_hot.float(), "one_hot")]
    for action, space in stored:
        assert torch.equal(action_index(action, space, len(shape)), index)
        assert torch.equal(gather_action(q, action_index(action, space, len(shape))), q.amax(-1))


# -- the Bellman error as a temperature -----------------------------------------------------------------------------


DELTA = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def test_bellman_temperature_by_hand() -> None:
    some, none = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)
    found = [
        bellman_temperature(DELTA, 0.3),
        bellman_temperature(DELTA, 0.3, exponent=1),
        bellman_temperature(DELTA, 0.3, exponent=3),
        bellman_temperature(DELTA, 0.3, weights=some),
        bellman_temperature(DELTA, 0.3, weights=none),
    ]
    expected = torch.tensor([0.15 * 14 / 3, 0.3 * 2, 0.1 * 12, 0.15 * 2.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-12)


def test_an_error_of_weight_0_may_be_nan_and_gets_no_gradient() -> None:
    weights = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    delta = (DELTA / torch.tensor([1, 1, 0]) * torch.tensor([1, 1, 0])).requires_grad_()
    temperature = bellman_temperature(delta, 0.3, weights=weights)
    temperature.backward()
    found = torch.cat((temperature.detach().reshape(1), delta.grad))  # type: ignore[arg-type]
    expected = 0.3 / 0.75 * torch.tensor([0.75, 0.5, -0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, float("nan")])
def test_exponents_below_1_are_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match=f"exponent must be a finite number >= 1, got {exponent}"):
        bellman_temperature(DELTA, 1.0, exponent=exponent)
