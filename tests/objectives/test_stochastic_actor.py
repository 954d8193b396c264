"""Statistics of distributions that the losses write out, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from policy_cases import CASES, make_actor
from torch.distributions import Categorical, kl_divergence

from torchrl_reg.objectives.actor_critic import closed_entropy, distribution, kl_or_estimate


@pytest.mark.parametrize("kind", ["categorical", "multicategorical", "ragged", "gaussian"])
def test_closed_kl(kind: str) -> None:
    data = CASES["m_iq"].batch(9, dtype=torch.float64)
    p, q = (distribution(make_actor(kind, seed).double(), data) for seed in (0, 1))
    kl = kl_or_estimate(p, q)
    assert kl.shape == (9,) and kl.min() > 1e-3
    torch.testing.assert_close(kl, kl_divergence(p, q), rtol=0, atol=1e-10)
    assert (closed_entropy(p) is None) == (kind == "gaussian")


def test_kl_where_an_action_is_impossible() -> None:
    p, q = (Categorical(logits=torch.tensor([*two, -torch.inf]).double()) for two in ((0.0, 1.0), (1.0, 0.0)))
    torch.testing.assert_close(kl_or_estimate(p, q), kl_divergence(p, q))


def test_estimated_kl_of_a_flow_is_unbiased() -> None:
    """Many copies of one state, against an average over another sample."""
    data = CASES["m_iq_flow"].batch(1).expand(20_000).contiguous()
    p, q = (distribution(make_actor("flow", seed), data) for seed in (0, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        action = p.sample()
        other = p.log_prob(action) - q.log_prob(action)
        kl = kl_or_estimate(p, q)
    error = ((kl.var() + other.var()) / 20_000).sqrt()
    assert kl.mean() > 0 and (kl.mean() - other.mean()).abs() < 4 * error
