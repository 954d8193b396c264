"""VIREL over discrete actions: its target by hand, its limits, any head, and its convergence in a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import DiscreteVIRELLoss, HardTargetUpdate, QLearningLoss
from torchrl_reg.regularizers import Boltzmann, Entropy
from torchrl_reg.tabular import random_mdp, value_iteration


def loss_of(cases: Any, name: str, **kwargs: Any) -> Any:
    case = cases[name]
    return type(case)(DiscreteVIRELLoss, {"tau": 0.5, **kwargs}, head=case.head).loss()


def test_the_policy_is_that_of_the_entropy_and_the_value_has_none() -> None:
    q = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, soft = Boltzmann(0.5)(q), Entropy(0.5)(q)
    torch.testing.assert_close(ours.pi, soft.pi)
    torch.testing.assert_close(ours.tau_log_pi, soft.tau_log_pi)
    torch.testing.assert_close(ours.value, (soft.pi * q).sum(-1))
    assert not ours.cost.any() and not ours.action_cost.any()
    mask = torch.tensor([True, False, True, True])
    masked = Boltzmann(0.5)(q, mask=mask)
    torch.testing.assert_close(masked.value, Boltzmann(0.5)(q[:, mask]).value)
    assert (masked.pi[:, 1] == 0).all()


def test_the_target_by_hand(cases: Any, batch: Any) -> None:
    loss, data = loss_of(cases, "soft_dqn", loss_function="l2", reduction="none"), batch(9)
    rows = loss(data)["loss"]
    with torch.no_grad():
        frozen = loss._bound(data)[1]
        next_q = frozen(data["next"])
        value = ((next_q / 0.5).softmax(-1) * next_q).sum(-1, keepdim=True)
        target = (data["next", "reward"] + 0.9 * ~data["next", "terminated"] * value).squeeze(-1)
        q = loss._bound(data)[0](data).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rows.detach(), (q - target).square())


def test_without_temperature_it_is_dqn(cases: Any, batch: Any) -> None:
    loss, data = loss_of(cases, "soft_dqn", tau=1e-6), batch(9)
    case = cases["soft_dqn"]
    dqn = type(case)(QLearningLoss).loss()
    torch.testing.assert_close(loss(data)["loss"], dqn(data)["loss"])


@pytest.mark.parametrize("name", ["soft_dqn", "iqn", "qr", "c51"])
def test_any_head(cases: Any, batch: Any, name: str) -> None:
    """And the temperature follows ``c / 2`` of its mean squared TD error."""
    loss, data = loss_of(cases, name, beta_scale=0.3, rate=0.25), batch(6)
    out = loss(data)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters()) and out["tau"] == 0.5
    loss.observe(out)
    expected = 0.75 * 0.5 + 0.25 * 0.15 * out["squared_td_error"].item()
    assert loss.tau.item() == pytest.approx(expected)
    assert loss(data)["tau"].item() == pytest.approx(expected)


def test_a_fixed_temperature_stays(cases: Any, batch: Any) -> None:
    loss = loss_of(cases, "soft_dqn")
    loss.observe(loss(batch(6)))
    loss.observe(torch.tensor(9.0))
    assert loss.tau == 0.5
    loss.tau = 0.1
    assert loss.tau == 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta_scale": 0.0}, "beta_scale must be a finite number > 0"),
        ({"tau": 0.0}, "tau must be a finite number > 0"),
    ],
)
def test_bad_input(cases: Any, kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(cases, "soft_dqn", **kwargs)


def test_in_a_table_the_temperature_anneals_and_the_values_become_optimal() -> None:
    """Exact minimization against the formulas; the temperature follows the error under the policy at the last one."""
    states, actions, gamma = 5, 3, 0.8
    mdp = random_mdp(states, actions, gamma, seed=3, deterministic=True)
    s, a, following = mdp.P.nonzero(as_tuple=True)
    eye, stop = torch.eye(states, dtype=torch.float64), torch.zeros(len(s), 1, dtype=torch.bool)
    ends = {"reward": mdp.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
    root = {"observation": eye[s], "action": a, "next": {"observation": eye[following], **ends}}
    data = TensorDict(root, [len(s)])
    net = nn.Linear(states, actions, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    settings = {"beta_scale": 0.5, "rate": 1.0, "tau_min": 1e-12, "loss_function": "l2"}
    loss = DiscreteVIRELLoss(QValueActor(net, spec=Categorical(actions)), **settings)
    loss.make_value_estimator(gamma=gamma)
    update = HardTargetUpdate(loss, period_updates=1)
    q, tau, taus = torch.zeros(states, actions, dtype=torch.float64), 1.0, []
    for _ in range(70):
        error = mdp.r + gamma * mdp.P @ ((q / tau).softmax(-1) * q).sum(-1) - q
        tau = max(0.25 * error.square().mean().item(), 1e-12)
        loss.observe(loss(data))
        assert loss.tau.item() == pytest.approx(tau, rel=1e-9, abs=1e-13)
        q = mdp.r + gamma * mdp.P @ ((q / tau).softmax(-1) * q).sum(-1)
        with torch.no_grad():
            net.weight.copy_(q.T)
        assert loss(data)["loss"] < 1e-20  # the minimum, the target held fixed
        update.step()
        taus.append(tau)
    assert taus[0] > 0.01 and taus[-1] < 1e-9
    torch.testing.assert_close(q, value_iteration(mdp).q, rtol=0, atol=1e-4)


def test_it_follows_numbers_too() -> None:
    network = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    for error in (0.5, torch.tensor([0.5]), {"squared_td_error": torch.tensor(0.5)}):
        loss = DiscreteVIRELLoss(network, beta_scale=1.0, rate=1.0)
        loss.observe(error)
        assert float(loss.tau) == 0.25
