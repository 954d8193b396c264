"""Methods that are the same in a limit give the same loss, gradient included."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor
from torchrl_reg.objectives import PolyakTargetUpdate, QLearningLoss

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
        ("mirl", {"beta": 1 / TINY}),
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


def test_a_uniform_prior_is_soft_dqn_less_the_log_of_the_actions(cases: Any, batch: Any) -> None:
    """SQL in its mellowmax form: every bootstrapped target lies gamma ln A / beta lower, n steps gamma^n."""
    data = batch(20, dtype=torch.float64)
    sql, soft = cases["mirl"].loss(prior=None).double(), cases["soft_dqn"].loss().double()
    assert float(sql.beta) == 1 / float(soft.tau) == 2.0
    shifted = data.clone()
    shifted["next", "reward"] -= 0.9 * math.log(3) / 2.0 * (~data["next", "terminated"]).double()
    assert_same(sql, _with_data(soft, shifted), data)
    data["steps_to_next_obs"] = torch.full((20, 1), 3)
    shifted = data.clone()
    shifted["next", "reward"] -= 0.9**3 * math.log(3) / 2.0 * (~data["next", "terminated"]).double()
    torch.testing.assert_close(sql(data)["loss"], soft(shifted)["loss"], rtol=0, atol=1e-10)


class _with_data:
    """A loss that looks at ``data`` whatever it is given."""

    def __init__(self, loss: Any, data: Any) -> None:
        self.loss, self.data = loss, data

    def __call__(self, _: Any) -> Any:
        return self.loss(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)


def test_hot_mirl_evaluates_its_prior(cases: Any, batch: Any) -> None:
    data = batch(20, dtype=torch.float64)
    loss = cases["mirl"].loss(beta=1e-7).double()
    q = loss._bound(data)[1](data["next"])
    value = (q * torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)).sum(-1, keepdim=True)
    target = data["next", "reward"] + 0.9 * value * (~data["next", "terminated"]).double()
    got = loss.value_estimator.value_estimate(data, next_q=q)
    torch.testing.assert_close(got, target, rtol=0, atol=1e-6)
    uniform = data["next", "reward"] + 0.9 * q.mean(-1, keepdim=True) * (~data["next", "terminated"]).double()
    assert (got - uniform).abs().max() > 1e-2


def mean_target(loss: Any, data: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The mean over quantiles of a loss's target, and the mean values that the target network was seen to give."""
    captured: list[torch.Tensor] = []
    seen: list[Any] = []
    target = loss._bound_networks["value_network"][1].network.quantile_network
    original, regress = target.quantiles, loss.head.regress
    target.quantiles = lambda *args: captured.append(original(*args)) or captured[-1]
    loss.head.regress = lambda *args, **how: seen.append(args[2]) or regress(*args, **how)
    loss(data)
    return seen[0].mean(-1, keepdim=True), [z.mean(-2) for z in captured]


def test_mi_iqn_in_the_mean_is_mirl(cases: Any, batch: Any) -> None:
    """With the policy's quantiles reused, averaging the target over quantiles gives MIRL's on the mean values."""
    data = batch(20, dtype=torch.float64)
    target, captured = mean_target(cases["mi_iqn_reuse"].loss().double(), data)
    expected = cases["mirl"].loss().double().value_estimator.value_estimate(data, next_q=captured[0])
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-12)


def test_cold_mi_iqn_is_iqn(cases: Any, batch: Any) -> None:
    cold, iqn = cases["mi_iqn_reuse"].loss(beta=1 / TINY), cases["iqn_reuse"].loss()
    for loss in (cold, iqn):
        loss.head.fractions = lambda features, count: (
            ((torch.arange(count) + 0.3) / count).double().expand(*features.shape[:-1], count)
        )
    assert_same(cold, iqn, batch(20, dtype=torch.float64))


def test_cold_munchausen_is_advantage_learning(cases: Any, batch: Any) -> None:
    cold = cases["m_dqn"].loss(tau=TINY, clip_min=None)
    assert_same(cold, cases["al"].loss(), batch(20, dtype=torch.float64))


def test_cold_munchausen_iqn_without_bonus_is_iqn(cases: Any, batch: Any) -> None:
    """The policy's fractions are drawn in another order, so both reuse the target's."""
    m_iqn = cases["m_iqn_reuse"].loss(tau=TINY, alpha=0.0, num_quantiles=5)
    iqn = cases["iqn_reuse"].loss()
    for loss in (m_iqn, iqn):
        loss.head.fractions = lambda features, count: (
            ((torch.arange(count) + 0.3) / count).double().expand(*features.shape[:-1], count)
        )
    assert_same(m_iqn, iqn, batch(20, dtype=torch.float64))


def test_mean_of_the_m_iqn_target_is_the_m_dqn_target(cases: Any, batch: Any) -> None:
    """With the policy's quantiles reused, averaging the target over quantiles gives M-DQN's on the mean values."""
    data = batch(20, dtype=torch.float64)
    target, (q, next_q) = mean_target(cases["m_iqn_reuse"].loss().double(), data)
    expected = cases["m_dqn"].loss().double().value_estimator.value_estimate(data, q=q, next_q=next_q)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-12)


def test_double_iqn_chooses_with_the_online_network(cases: Any, batch: Any) -> None:
    case = cases["iqn_double"]
    actor = case.actor()
    # Quantiles that do not depend on the fraction: then IQN is double DQN.
    nn.init.zeros_(actor.quantile_network.embedding.weight)
    nn.init.ones_(actor.quantile_network.embedding.bias)
    loss, data = case.loss(actor, perturb=False), batch(64)
    generator = torch.Generator().manual_seed(5)
    for key, p in loss._target_params().items(True, True):
        if "embedding" not in key:
            p.data.add_(torch.randn(p.shape, generator=generator))
    online, target = (bound.network.quantile_network for bound in loss._bound(data))

    def q(net: Any, observation: torch.Tensor) -> torch.Tensor:
        return net(observation, torch.full((64, 1), 0.5)).squeeze(1)

    following = data["next", "observation"]
    chosen, greedy = q(online, following).argmax(-1), q(target, following).argmax(-1)
    assert (chosen != greedy).any()
    next_q = q(target, following).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    alive = ~data["next", "terminated"].squeeze(-1)
    expected = data["next", "reward"].squeeze(-1) + 0.9 * alive * next_q
    error = expected - q(online, data["observation"]).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss(data)["td_error"], error.abs().mean())


def test_deterministic_returns_have_the_target_of_dqn(batch: Any) -> None:
    """Equal quantiles, or atoms that are all the mass between two neighbours, are numbers: TD errors are DQN's."""
    torch.manual_seed(0)
    data, linear = batch(50, dtype=torch.float64), nn.Linear(4, 3).double()
    data["next", "reward"] *= 0.3  # all returns within the grid
    repeated = nn.Linear(4, 15).double()
    repeated.weight.data, repeated.bias.data = linear.weight.data.repeat(5, 1), linear.bias.data.repeat(5)
    grid = torch.linspace(-20, 20, 81, dtype=torch.float64)

    class Atoms(nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            distance = (linear(observation).unsqueeze(-2) - grid.unsqueeze(-1)).abs() / 0.5
            return (1 - distance).clamp(min=1e-300).log().flatten(-2)

    spec = Categorical(3)
    atoms = CategoricalQActor(Atoms(), num_atoms=81, value_min=-20, value_max=20, spec=spec)
    actors = [QValueActor(linear, spec=spec), FixedQuantileQActor(repeated, num_quantiles=5, spec=spec), atoms]
    made = [QLearningLoss(actor, delay_value=False) for actor in actors]
    losses = [loss.make_value_estimator(gamma=0.9).double() for loss in made]
    dqn, *distributions = [loss(data.clone())["td_error"] for loss in losses]
    for error in distributions:
        torch.testing.assert_close(error, dqn, rtol=0, atol=1e-10)
