"""Action gap, entropy and KL divergence: literal numbers and their edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import action_gap, kl_divergence, policy_entropy


def test_action_gap_is_best_minus_second_best():
    q = torch.tensor([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0], [-math.inf, -1.0, -2.0]])
    assert action_gap(q).tolist() == [1.5, 0.0, 1.0]
    assert action_gap(q.expand(2, 3, 3)).shape == (2, 3)
    assert action_gap(q.bfloat16()).dtype == torch.float32


def test_action_gap_needs_two_actions():
    with pytest.raises(ValueError, match=r"at least two actions"):
        action_gap(torch.zeros(3, 1))


def test_entropy_treats_zero_probability_as_zero():
    pi = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    expected = torch.tensor([1.5 * math.log(2.0), 0.0, math.log(4.0)])
    torch.testing.assert_close(policy_entropy(pi), expected)
    torch.testing.assert_close(policy_entropy(pi.T, dim=0), expected)


def test_entropy_gradient_is_finite_at_zero_probability():
    pi = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(policy_entropy(pi), pi)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[:2], torch.full((2,), math.log(2.0) - 1.0))


def test_kl_literal_number_and_signs():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 0.3, 0.5])
    expected = 0.5 * math.log(2.5) + 0.25 * math.log(5 / 6) + 0.25 * math.log(0.5)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(q.log(), p.log()).item() != pytest.approx(expected, rel=1e-2)
    assert kl_divergence(p.log(), p.log()).item() == 0.0
    columns = torch.stack([p, q], -1).log()
    by_column = kl_divergence(columns, q.log().unsqueeze(-1), dim=0)
    torch.testing.assert_close(by_column, torch.tensor([expected, 0.0]))


def test_kl_to_uniform_is_missing_entropy():
    pi = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    uniform = torch.full((5,), -math.log(5.0))
    torch.testing.assert_close(
        kl_divergence(pi.log(), uniform), math.log(5.0) - policy_entropy(pi), atol=1e-6, rtol=0.0
    )


def test_kl_with_zero_probabilities():
    log_p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log()
    log_q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    divergence = kl_divergence(log_p, log_q)
    torch.testing.assert_close(divergence, torch.tensor([math.log(2.0), math.inf]))
    row_p, row_q = log_p[0].detach().requires_grad_(), log_q[0].detach().requires_grad_()
    for gradient in torch.autograd.grad(kl_divergence(row_p, row_q), [row_p, row_q]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    pi = torch.tensor([0.5, 0.25, 0.25], dtype=dtype)
    assert policy_entropy(pi).dtype == torch.float32
    assert kl_divergence(pi.log(), pi.log()).dtype == torch.float32
