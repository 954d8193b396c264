"""Soft value, policy and scaled log-policy, entropy and KL divergence: literal numbers, identities, extremes."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import (
    kl_divergence,
    policy_entropy,
    scaled_log_policy,
    soft_gap,
    soft_policy,
    soft_value,
    soft_value_and_log_policy,
    soft_value_and_policy,
)

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
