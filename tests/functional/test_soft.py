"""Soft value, policy and scaled log-policy: literal numbers, identities, extremes."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import (
    policy_entropy,
    scaled_log_policy,
    soft_gap,
    soft_policy,
    soft_value,
)

Q = torch.tensor([1.0, 2.0], dtype=torch.float64)
LOG_PRIOR = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
LOWEST = torch.finfo(torch.float32).min


def random_q(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(actual: torch.Tensor, expected: object, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


# By hand at tau = 0.5: F = ln(e^2 + e^4) / 2, and with the prior ln(e^2 / 4 + 3 e^4 / 4) / 2.
@pytest.mark.parametrize(
    ("log_prior", "value", "policy", "tau_log_pi"),
    [
        (
            None,
            2.0634640055214863,
            [0.11920292202211756, 0.8807970779778824],
            [-1.0634640055214863, -0.06346400552148626],
        ),
        (
            LOG_PRIOR,
            1.8782208778236271,
            [0.04316453299997627, 0.9568354670000237],
            [-1.5713680583835723, -0.022061914049517593],
        ),
    ],
)
def test_literal_numbers(log_prior, value, policy, tau_log_pi):
    close(soft_value(Q, 0.5, log_prior=log_prior), value, 1e-10)
    close(soft_policy(Q, 0.5, log_prior=log_prior), policy, 1e-10)
    close(scaled_log_policy(Q, 0.5, log_prior=log_prior), tau_log_pi, 1e-10)
    close(soft_gap(Q, 0.5, log_prior=log_prior), value - 2.0, 1e-10)


@pytest.mark.parametrize("tau", [0.03, 0.7, 5.0])
@pytest.mark.parametrize("with_prior", [False, True])
def test_value_is_the_regularized_maximum_of_its_policy(tau, with_prior):
    q = random_q(7, 5)
    log_prior = random_q(5).log_softmax(-1) if with_prior else None
    options = {"log_prior": log_prior}
    pi = soft_policy(q, tau, **options)
    log_ratio = pi.log() - (0.0 if log_prior is None else log_prior)
    close(soft_value(q, tau, **options), (pi * (q - tau * log_ratio)).sum(-1))
    close(scaled_log_policy(q, tau, **options), tau * pi.log(), 1e-10)
    close(pi.sum(-1), torch.ones(7))
    assert (scaled_log_policy(q, tau, **options) <= 0).all()
    for other in random_q(20, 7, 5).softmax(-1):
        log_ratio = other.log() - (0.0 if log_prior is None else log_prior)
        lower = (other * (q - tau * log_ratio)).sum(-1)
        assert (lower <= soft_value(q, tau, **options) + 1e-12).all()


def test_gradients_are_the_policy_and_the_entropy():
    q = random_q(4, 5).requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    by_q, by_tau = torch.autograd.grad(soft_value(q, tau).sum(), [q, tau])
    pi = soft_policy(q, 0.3)
    close(by_q, pi)
    close(by_tau, policy_entropy(pi).sum())


@pytest.mark.parametrize("tau", [0.0, 0.01, 0.7])
def test_gap_to_the_maximum_is_between_zero_and_tau_log_actions(tau):
    q = random_q(50, 6)
    gap = soft_gap(q, tau)
    assert (gap >= 0).all() and (gap <= tau * math.log(6) + 1e-12).all()
    close(soft_value(q, tau), q.amax(-1) + gap)
    close(soft_gap(torch.full((2, 6), 4.0, dtype=torch.float64), tau), [tau * math.log(6)] * 2)


def test_shift_and_scale_laws():
    q, tau = random_q(9, 4), 0.4
    close(soft_value(q + 17.0, tau), soft_value(q, tau) + 17.0)
    close(soft_value(2.5 * q, 2.5 * tau), 2.5 * soft_value(q, tau))
    close(scaled_log_policy(q + 17.0, tau), scaled_log_policy(q, tau))
    uniform = torch.full((4,), -math.log(4.0), dtype=torch.float64)
    close(soft_value(q, tau, log_prior=uniform), soft_value(q, tau) - tau * math.log(4.0))
    close(soft_policy(q, tau, log_prior=uniform), soft_policy(q, tau))


@pytest.mark.parametrize("tau", [0.0, torch.tensor(0.0)])
def test_zero_temperature_is_the_hard_limit(tau):
    q = torch.tensor([[1.0, 3.0, 3.0], [-2.0, -1.0, -7.0]])
    close(soft_value(q, tau), [3.0, -1.0], 0.0)
    close(scaled_log_policy(q, tau), [[-2.0, 0.0, 0.0], [-1.0, 0.0, -6.0]], 0.0)
    close(soft_policy(q, tau), [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], 0.0)
    close(soft_gap(q, tau), [0.0, 0.0], 0.0)
    log_prior = torch.tensor([0.4, 0.0, 0.6]).log()
    close(soft_value(q, tau, log_prior=log_prior), [3.0, -2.0], 0.0)
    hard = [[-2.0, -math.inf, 0.0], [0.0, -math.inf, -5.0]]
    close(scaled_log_policy(q, tau, log_prior=log_prior), hard, 0.0)
    tied = soft_policy(torch.ones(3), tau, log_prior=log_prior)
    close(tied, [0.4, 0.0, 0.6], 1e-6)


def test_zero_temperature_gradient_goes_to_the_best_actions():
    q = torch.tensor([1.0, 3.0, 3.0], requires_grad=True)
    (by_q,) = torch.autograd.grad(soft_value(q, 0.0), q)
    close(by_q, [0.0, 0.5, 0.5], 0.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("tau", [1e-4, 0.03])
def test_float32_is_right_at_large_values(tau, sign):
    q64 = sign * 1e4 + tau * torch.tensor([0.0, -9.765625, -30.0], dtype=torch.float64)
    q32 = q64.float()
    q64 = q32.double()  # the numbers that float32 can hold
    close(soft_value(q32, tau), soft_value(q64, tau), 1e-3)
    close(soft_policy(q32, tau), soft_policy(q64, tau), 1e-6)
    close(scaled_log_policy(q32, tau), scaled_log_policy(q64, tau), 1e-5 * tau)
    close(soft_gap(q32, tau), soft_gap(q64, tau), 1e-6 * tau)
    close(soft_value(q64, tau), tau * torch.logsumexp(q64 / tau, -1), 1e-9)
    close(scaled_log_policy(q64, tau), tau * torch.log_softmax(q64 / tau, -1), 1e-9)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("tau", [1e-45, 1e-38, 1e-30, 1e-4])
def test_tiny_temperatures_are_finite_with_finite_gradients(tau, as_tensor, with_prior):
    q = torch.tensor([[1e4, 1e4, -1e4], [0.0, 1e-3, 2e-3], [5.0, 5.0, 5.0]], requires_grad=True)
    options = {"log_prior": torch.tensor([0.2, 0.3, 0.5]).log() if with_prior else None}
    temperature = torch.tensor(tau) if as_tensor else tau
    value = soft_value(q, temperature, **options)
    tau_log_pi = scaled_log_policy(q, temperature, **options)
    pi = soft_policy(q, temperature, **options)
    close(value, q.amax(-1), 4 * tau)
    close(tau_log_pi, q - q.amax(-1, keepdim=True), 4 * tau)
    close(pi.sum(-1), torch.ones(3), 1e-6)
    expected = [2 / 5, 3 / 5, 0.0] if with_prior else [0.5, 0.5, 0.0]
    close(pi[0], expected, 1e-6)
    total = value.sum() + tau_log_pi.mul(torch.arange(3.0)).sum() + pi[:, 0].sum()
    (gradient,) = torch.autograd.grad(total, q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("mask", [-math.inf, LOWEST])
@pytest.mark.parametrize("tau", [0.0, 1e-38, 0.5, torch.tensor(0.5)])
def test_masked_actions_are_ignored_in_value_and_gradient(mask, tau):
    free = torch.tensor([1.0, 2.0, -3.0])
    q = torch.tensor([1.0, mask, 2.0, -3.0], requires_grad=True)
    kept = [0, 2, 3]
    close(soft_value(q, tau), soft_value(free, tau), 0.0)
    close(soft_gap(q, tau), soft_gap(free, tau), 0.0)
    close(soft_policy(q, tau)[kept], soft_policy(free, tau), 0.0)
    tau_log_pi = scaled_log_policy(q, tau)
    close(tau_log_pi[kept], scaled_log_policy(free, tau), 0.0)
    assert soft_policy(q, tau)[1] == 0 and tau_log_pi[1] <= LOWEST
    total = soft_value(q, tau) + soft_policy(q, tau)[0] + tau_log_pi[kept].sum()
    (gradient,) = torch.autograd.grad(total, q)
    assert gradient.isfinite().all() and gradient[1] == 0


@pytest.mark.parametrize("tau", [0.0, 1e-38, 0.5])
def test_prior_without_support_masks_like_an_infinite_value(tau):
    q = torch.tensor([9.0, 1.0, 2.0], requires_grad=True)  # the best action is not supported
    log_prior = torch.tensor([-math.inf, math.log(0.2), math.log(0.8)], requires_grad=True)
    free_q, free_prior = q.detach()[1:], log_prior.detach()[1:]
    options = {"log_prior": log_prior}
    close(soft_value(q, tau, **options), soft_value(free_q, tau, log_prior=free_prior), 1e-6)
    pi, tau_log_pi = soft_policy(q, tau, **options), scaled_log_policy(q, tau, **options)
    close(pi[1:], soft_policy(free_q, tau, log_prior=free_prior), 1e-6)
    assert pi[0] == 0 and tau_log_pi[0] == -math.inf
    total = soft_value(q, tau, **options) + pi[1] + tau_log_pi[1:].sum()
    for gradient in torch.autograd.grad(total, [q, log_prior]):
        assert gradient.isfinite().all() and gradient[0] == 0


def test_prior_decides_between_tied_actions_of_large_value():
    q, prior = torch.full((2,), 1e4), torch.tensor([0.9, 0.1])
    close(soft_policy(q, 1e-4, log_prior=prior.log()), prior, 1e-6)
    expected = 1e-4 * prior.log()
    close(scaled_log_policy(q, 1e-4, log_prior=prior.log()), expected, 1e-9)


def test_prior_that_overrules_the_values_does_not_overflow():
    q, log_prior = torch.tensor([1.0, 0.0]), torch.tensor([-2000.0, 0.0])
    close(soft_value(q, 0.5, log_prior=log_prior), 0.0, 1e-6)
    close(scaled_log_policy(q, 0.5, log_prior=log_prior), [-999.0, 0.0], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    q, tau = torch.tensor([[1.0, 2.0, 1.5]], dtype=dtype), 0.03
    for function in (soft_value, scaled_log_policy, soft_policy, soft_gap):
        result = function(q, tau)
        assert result.dtype == torch.float32
        close(result, function(q.float(), tau), 0.0)
        close(function(q, tau, log_prior=torch.zeros(3, dtype=dtype)), result, 1e-6)


@pytest.mark.parametrize("tau_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_temperature_in_any_dtype_does_not_divide_by_zero(dtype, tau_dtype):
    tau, q = torch.tensor(0.0, dtype=tau_dtype), torch.tensor([1.0, 1.0, 0.0], dtype=dtype)
    close(soft_policy(q, tau), [0.5, 0.5, 0.0], 0.0)
    close(scaled_log_policy(q, tau), [0.0, 0.0, -1.0], 0.0)
    assert soft_value(q, tau).dtype == scaled_log_policy(q, tau).dtype == dtype


def test_any_dimension_can_hold_the_actions():
    q, log_prior = random_q(3, 5, 2), random_q(5, 1).log_softmax(0)
    options = {"log_prior": log_prior, "dim": 1}
    last = {"log_prior": log_prior.squeeze(-1)}
    moved = q.movedim(1, -1)
    close(soft_value(q, 0.4, **options), soft_value(moved, 0.4, **last))
    close(soft_gap(q, 0.4, **options), soft_gap(moved, 0.4, **last))
    for function in (scaled_log_policy, soft_policy):
        close(function(q, 0.4, **options), function(moved, 0.4, **last).movedim(-1, 1))


def test_float_and_tensor_temperatures_agree():
    q = random_q(3, 4).float()
    for function in (soft_value, scaled_log_policy, soft_policy, soft_gap):
        close(function(q, torch.tensor(0.3, dtype=torch.float64)), function(q, 0.3), 1e-6)


@pytest.mark.parametrize("function", [soft_value, scaled_log_policy, soft_policy, soft_gap])
def test_bad_temperatures_are_refused(function):
    for tau in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"tau must be a finite temperature >= 0"):
            function(Q, tau)
    with pytest.raises(ValueError, match=r"tau must be a number or a 0-dimensional tensor"):
        function(Q, torch.tensor([0.1]))
