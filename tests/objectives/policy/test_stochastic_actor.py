"""Statistics of distributions that the losses write out, against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import kl_divergence

from torchrl_reg.objectives.actor_critic.stochastic_actor import closed_entropy, distribution, kl_or_estimate


@pytest.mark.parametrize("kind", ["categorical", "multicategorical", "ragged", "gaussian"])
def test_closed_kl(actor: Any, cases: Any, kind: str) -> None:
    data = cases["m_iq"].batch(9, dtype=torch.float64)
    p, q = (distribution(actor(kind, seed).double(), data) for seed in (0, 1))
    kl = kl_or_estimate(p, q)
    assert kl.shape == (9,) and kl.min() > 1e-3
    torch.testing.assert_close(kl, kl_divergence(p, q), rtol=0, atol=1e-10)
    assert (closed_entropy(p) is None) == (kind == "gaussian")


def test_kl_where_an_action_is_impossible() -> None:
    p = torch.distributions.Categorical(logits=torch.tensor([0.0, 1.0, -torch.inf], dtype=torch.float64))
    q = torch.distributions.Categorical(logits=torch.tensor([1.0, 0.0, -torch.inf], dtype=torch.float64))
    torch.testing.assert_close(kl_or_estimate(p, q), kl_divergence(p, q))


def test_estimated_kl_of_a_flow_is_unbiased(actor: Any, cases: Any) -> None:
    """Many copies of one state, against an average over another sample."""
    row = cases["m_iq_flow"].batch(1)
    data = row.expand(20_000).contiguous()
    p, q = (distribution(actor("flow", seed), data) for seed in (0, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        action = p.sample()
        other = p.log_prob(action) - q.log_prob(action)
        kl = kl_or_estimate(p, q)
    error = ((kl.var() + other.var()) / 20_000).sqrt()
    assert kl.mean() > 0 and (kl.mean() - other.mean()).abs() < 4 * error


def test_state_and_data_are_left_alone(actor: Any, cases: Any) -> None:
    data = cases["m_iq"].batch(4)
    keys = set(data.keys(True, True))
    for kind in ("categorical", "multicategorical", "gaussian", "flow"):
        distribution(actor(kind), data)
    assert set(data.keys(True, True)) == keys
