"""Methods that are the same in a limit give the same loss, gradient included."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torchrl.objectives import DQNLoss

from torchrl_reg.objectives import PolyakTargetUpdate

TINY = 1e-12


def gradient(loss: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in loss.parameters()])


def assert_same(first: Any, second: Any, data: Any, atol: float = 1e-10) -> None:
    for loss in (first, second):
        loss.double()
        loss.zero_grad()
        torch.manual_seed(5)
        loss(data)["loss"].backward()
    torch.manual_seed(5)
    one = first(data)["loss"]
    torch.manual_seed(5)
    torch.testing.assert_close(one, second(data)["loss"], rtol=0, atol=atol)
    torch.testing.assert_close(gradient(first), gradient(second), rtol=0, atol=atol)


def stock_dqn(cases: Any) -> DQNLoss:
    reference = cases["m_dqn"].loss()
    loss = DQNLoss(cases["m_dqn"].actor(), loss_function="smooth_l1")
    PolyakTargetUpdate(loss, rate=0.5)
    loss.target_value_network_params.data.update_(reference.target_value_network_params.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.tensor(tensor): TorchRL copies a tensor gamma
        loss.make_value_estimator(gamma=torch.tensor(0.9, dtype=torch.float64))
    return loss


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("soft_dqn", {"tau": TINY}),
        ("m_dqn", {"tau": TINY, "alpha": 0.0}),
        ("al", {"alpha": 0.0}),
        ("pal", {"alpha": 0.0}),
    ],
)
def test_stock_dqn_is_a_limit(cases: Any, batch: Any, name: str, kwargs: dict[str, Any]) -> None:
    data, other = batch(20, dtype=torch.float64), batch(20, dtype=torch.float64)
    ours, stock = cases[name].loss(**kwargs), stock_dqn(cases)
    assert_same(ours, stock, data)
    ours(data), stock(other)
    torch.testing.assert_close(data["td_error"], other["td_error"])


def test_munchausen_without_its_bonus_is_soft_dqn(cases: Any, batch: Any) -> None:
    assert_same(cases["m_dqn"].loss(alpha=0.0), cases["soft_dqn"].loss(), batch(20, dtype=torch.float64))


def test_cold_munchausen_is_advantage_learning(cases: Any, batch: Any) -> None:
    cold = cases["m_dqn"].loss(tau=TINY, clip_min=None)
    assert_same(cold, cases["al"].loss(), batch(20, dtype=torch.float64))


def test_cold_munchausen_iqn_without_bonus_is_iqn(cases: Any, batch: Any) -> None:
    """The policy's fractions are drawn in another order, so both reuse the target's."""
    m_iqn = cases["m_iqn_reuse"].loss(tau=TINY, alpha=0.0, num_quantiles=5)
    iqn = cases["iqn_reuse"].loss()
    for loss in (m_iqn, iqn):
        loss._fractions = lambda features, count: (
            ((torch.arange(count) + 0.3) / count).double().expand(*features.shape[:-1], count)
        )
    assert_same(m_iqn, iqn, batch(20, dtype=torch.float64))


def test_mean_of_the_m_iqn_target_is_the_m_dqn_target(cases: Any, batch: Any) -> None:
    """With the policy's quantiles reused, averaging the target over quantiles gives M-DQN's on the mean values."""
    data = batch(20, dtype=torch.float64)
    loss = cases["m_iqn_reuse"].loss().double()
    bound = loss._networks["value_network"]
    frozen = bound[1].network.quantile_network
    captured: dict[str, torch.Tensor] = {}
    original = frozen.quantiles

    def spy(features: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
        out = original(features, fractions)
        captured["next" if "s" in captured else "s"] = out.mean(-2)
        return out

    frozen.quantiles = spy
    key = "observation"
    target, _ = loss._quantile_target(data, key, None, frozen, torch.zeros(20, 5, 3, dtype=torch.float64))
    m_dqn = cases["m_dqn"].loss().double()
    expected = m_dqn.value_estimator.value_estimate(
        data, q=captured["s"], next_q=captured["next"], tau=m_dqn.tau, alpha=m_dqn.alpha, clip_min=m_dqn.clip_min
    )
    torch.testing.assert_close(target.mean(-1, keepdim=True), expected, rtol=0, atol=1e-12)
