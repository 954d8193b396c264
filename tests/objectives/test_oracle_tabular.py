"""Losses against exact dynamic programming: one-hot features, one value per state-action pair, float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg import tabular
from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
from torchrl_reg.objectives import (
    AdvantageLearningLoss,
    HardTargetUpdate,
    IQNLoss,
    MunchausenDQNLoss,
    MunchausenIQNLoss,
    SoftDQNLoss,
)

GAMMA, STATES, ACTIONS = 0.9, 6, 4
TAUS, ALPHAS, CLIPS = (1e-3, 0.03, 0.5), (0.0, 0.5, 0.9), (None, -0.3)
EVERY = list(itertools.product(TAUS, ALPHAS, CLIPS))


def all_transitions(mdp: tabular.TabularMDP) -> TensorDict:
    """Every (s, a, s') of positive probability, with that probability as its weight."""
    s, a, following = mdp.P.nonzero(as_tuple=True)
    eye = torch.eye(mdp.P.shape[0], dtype=torch.float64)
    stop = torch.zeros(len(s), 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": eye[s],
            "action": a,
            "priority_weight": mdp.P[s, a, following],
            "next": {
                "observation": eye[following],
                "reward": mdp.r[s, a].unsqueeze(-1),
                "done": stop,
                "terminated": stop,
            },
        },
        [len(s)],
    )


def table(q: torch.Tensor | None = None) -> QValueActor:
    net = nn.Linear(STATES, ACTIONS, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    if q is not None:
        net.weight.data.copy_(q.T)
    return QValueActor(net, spec=Categorical(ACTIONS))


def quantile_table(q: torch.Tensor | None = None) -> QuantileQActor:
    """Quantile values that do not depend on the fraction: a table again, learnt in the last layer."""
    net = ImplicitQuantileNetwork(
        nn.Identity(), num_features=STATES, num_actions=ACTIONS, num_cosines=4, num_cells=STATES
    ).double()
    for p in net.parameters():
        nn.init.zeros_(p).requires_grad_(False)
    nn.init.ones_(net.embedding.bias)
    nn.init.eye_(net.head[0].weight)
    net.head[2].weight.requires_grad_(True)
    if q is not None:
        net.head[2].weight.data.copy_(q.T)
    return QuantileQActor(net, spec=Categorical(ACTIONS), num_quantiles=3)


def build(cls: Any, actor: QValueActor, **kwargs: Any) -> Any:
    return cls(actor, **kwargs).make_value_estimator(gamma=GAMMA)


def solve(name: str, mdp: tabular.TabularMDP, tau: float, alpha: float, clip: float | None) -> torch.Tensor:
    return {
        "soft_dqn": lambda: tabular.soft_value_iteration(mdp, tau),
        "m_dqn": lambda: tabular.munchausen_value_iteration(mdp, tau, alpha, clip),
        "m_iqn": lambda: tabular.munchausen_value_iteration(mdp, tau, alpha, clip),
        "al": lambda: tabular.advantage_learning(mdp, alpha),
        "pal": lambda: tabular.advantage_learning(mdp, alpha, persistent=True),
        "iqn": lambda: tabular.value_iteration(mdp),
    }[name]().q


def loss_of(name: str, q: torch.Tensor | None, tau: float, alpha: float, clip: float | None, **kwargs: Any) -> Any:
    munchausen = {"tau": tau, "alpha": alpha, "clip_min": clip}
    counts = {"num_quantiles": 4, "num_target_quantiles": 3, "num_policy_quantiles": 2}
    cls, coefficients = {
        "soft_dqn": (SoftDQNLoss, {"tau": tau}),
        "m_dqn": (MunchausenDQNLoss, munchausen),
        "al": (AdvantageLearningLoss, {"alpha": alpha}),
        "pal": (AdvantageLearningLoss, {"alpha": alpha, "persistent": True}),
        "iqn": (IQNLoss, counts),
        "m_iqn": (MunchausenIQNLoss, {**munchausen, **counts}),
    }[name]
    actor = quantile_table(q) if name.endswith("iqn") else table(q)
    return build(cls, actor, **coefficients, **kwargs)


def largest_td_error(name: str, mdp: tabular.TabularMDP, tau: float, alpha: float, clip: float | None) -> float:
    q = solve(name, mdp, tau, alpha, clip)
    loss = loss_of(name, q, tau, alpha, clip, reduction="none", delay_value=False)
    if name.endswith("iqn"):
        loss.head.kappa = 0.0  # the pinball loss: at least min(sigma, 1 - sigma) |TD error|
    else:
        loss.loss_function = "l1"
    data = all_transitions(mdp).exclude("priority_weight")
    return float(loss(data)["loss"].detach().max())


@pytest.mark.parametrize(
    ("name", "tau", "alpha", "clip"),
    [(name, *setting) for name in ("m_dqn", "m_iqn") for setting in EVERY]
    + [("soft_dqn", tau, 0.0, None) for tau in TAUS]
    + [(name, 0.0, alpha, None) for name in ("al", "pal") for alpha in ALPHAS]
    + [("iqn", 0.0, 0.0, None)],
)
def test_td_error_vanishes_at_the_fixed_point(name: str, tau: float, alpha: float, clip: float | None) -> None:
    for seed in range(3):
        mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=seed, deterministic=True)
        assert largest_td_error(name, mdp, tau, alpha, clip) < 1e-10


def test_td_error_does_not_vanish_elsewhere() -> None:
    """The clip is active, and the fixed point of one setting is not that of another."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=0, deterministic=True)
    q = tabular.munchausen_value_iteration(mdp, 0.5, 0.5, -0.3).q
    data = all_transitions(mdp).exclude("priority_weight")
    for tau, alpha, clip in ((0.5, 0.5, None), (0.5, 0.4, -0.3), (0.4, 0.5, -0.3)):
        loss = loss_of("m_dqn", q, tau, alpha, clip, reduction="none", delay_value=False, loss_function="l1")
        assert loss(data)["loss"].max() > 1e-2


@pytest.mark.parametrize(
    ("name", "tau", "alpha", "clip"),
    [
        ("soft_dqn", 0.5, 0.0, None),
        ("m_dqn", 0.5, 0.5, None),
        ("m_dqn", 0.5, 0.5, -0.3),
        ("m_dqn", 0.03, 0.9, -1.0),
        ("al", 0.0, 0.5, None),
        ("pal", 0.0, 0.5, None),
    ],
)
def test_minimizing_the_loss_finds_the_tabular_solution(name: str, tau: float, alpha: float, clip: Any) -> None:
    """On a stochastic MDP: only the conditional mean of the target matters, as for any squared loss."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    loss = loss_of(name, None, tau, alpha, clip, loss_function="l2")
    target_update = HardTargetUpdate(loss, period_updates=2)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.4 * STATES * ACTIONS)
    data = all_transitions(mdp)
    for _ in range(2000):
        optimizer.zero_grad()
        loss(data)["loss"].backward()
        optimizer.step()
        target_update.step()
    learnt = next(loss.parameters()).T
    torch.testing.assert_close(learnt, solve(name, mdp, tau, alpha, clip), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["iqn", "m_iqn"])
def test_minimizing_the_quantile_loss_finds_the_tabular_solution(name: str) -> None:
    tau, alpha, clip = 0.5, 0.5, -0.3
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=4, deterministic=True)
    loss = loss_of(name, None, tau, alpha, clip)
    target_update = HardTargetUpdate(loss, period_updates=2)
    weight = next(p for p in loss.parameters() if p.requires_grad)
    optimizer = torch.optim.SGD([weight], lr=0.25 * STATES * ACTIONS)
    data = all_transitions(mdp)
    torch.manual_seed(0)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(data)["loss"].backward()
        optimizer.step()
        target_update.step()
    torch.testing.assert_close(weight.T.detach(), solve(name, mdp, tau, alpha, clip), rtol=0, atol=1e-6)
