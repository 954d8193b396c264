"""Losses against exact dynamic programming: one-hot features, one value per state-action pair, float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tabular_cases import all_transitions, quantile_table, table
from tensordict import TensorDict
from torch import Tensor

from torchrl_reg import objectives, tabular
from torchrl_reg.modules import ActionPrior, PriorUpdate
from torchrl_reg.tabular import TabularMDP, random_mdp

GAMMA, STATES, ACTIONS = 0.9, 6, 4
TAUS, ALPHAS, CLIPS = (1e-3, 0.03, 0.5), (0.0, 0.5, 0.9), (None, -0.3)
EVERY = list(itertools.product(TAUS, ALPHAS, CLIPS))


def solve(name: str, mdp: TabularMDP, tau: float, alpha: float, clip: float | None) -> Tensor:
    return {
        "soft_dqn": lambda: tabular.soft_value_iteration(mdp, tau),
        "m_dqn": lambda: tabular.munchausen_value_iteration(mdp, tau, alpha, clip),
        "m_iqn": lambda: tabular.munchausen_value_iteration(mdp, tau, alpha, clip),
        "al": lambda: tabular.advantage_learning(mdp, alpha),
        "pal": lambda: tabular.advantage_learning(mdp, alpha, persistent=True),
        "iqn": lambda: tabular.value_iteration(mdp),
    }[name]().q


def loss_of(name: str, q: Tensor, tau: float, alpha: float, clip: float | None, **kwargs: Any) -> Any:
    munchausen = {"tau": tau, "alpha": alpha, "clip_min": clip}
    counts = {"num_quantiles": 4, "num_target_quantiles": 3, "num_policy_quantiles": 2}
    cls, coefficients = {
        "soft_dqn": (objectives.SoftDQNLoss, {"tau": tau}),
        "m_dqn": (objectives.MunchausenDQNLoss, munchausen),
        "al": (objectives.AdvantageLearningLoss, {"alpha": alpha}),
        "pal": (objectives.AdvantageLearningLoss, {"alpha": alpha, "persistent": True}),
        "iqn": (objectives.IQNLoss, counts),
        "m_iqn": (objectives.MunchausenIQNLoss, {**munchausen, **counts}),
    }[name]
    actor = quantile_table(q) if name.endswith("iqn") else table(q)
    return cls(actor, **coefficients, **kwargs).make_value_estimator(gamma=GAMMA)


def largest_td_error(name: str, mdp: TabularMDP, q: Tensor, tau: float, alpha: float, clip: float | None) -> float:
    loss = loss_of(name, q, tau, alpha, clip, reduction="none", delay_value=False)
    if name.endswith("iqn"):
        loss.head.kappa = 0.0  # the pinball loss: at least min(sigma, 1 - sigma) |TD error|
    else:
        loss.loss_function = "l1"
    return float(loss(all_transitions(mdp).exclude("priority_weight"))["loss"].detach().max())


@pytest.mark.parametrize(
    ("name", "setting"),
    [*itertools.product(("m_dqn", "m_iqn"), EVERY)]
    + [("soft_dqn", (tau, 0.0, None)) for tau in TAUS]
    + [(name, (0.0, alpha, None)) for name in ("al", "pal") for alpha in ALPHAS]
    + [("iqn", (0.0, 0.0, None))],
)
def test_td_error_vanishes_at_the_fixed_point(name: str, setting: Any) -> None:
    for seed in range(3):
        mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=seed, deterministic=True)
        assert largest_td_error(name, mdp, solve(name, mdp, *setting), *setting) < 1e-10


@pytest.mark.parametrize("setting", [(0.5, 0.5, None), (0.5, 0.4, -0.3), (0.4, 0.5, -0.3)])
def test_td_error_does_not_vanish_elsewhere(setting: Any) -> None:
    """The clip is active, and the fixed point of one setting is not that of another."""
    mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=0, deterministic=True)
    assert largest_td_error("m_dqn", mdp, solve("m_dqn", mdp, 0.5, 0.5, -0.3), *setting) > 1e-2


def minimize(loss: Any, data: TensorDict, lr: float, steps: int, period: int) -> Tensor:
    """The table ``[S, A]`` that gradient descent on all transitions ends with."""
    target_update = objectives.HardTargetUpdate(loss, period_updates=period)
    weight = next(p for p in loss.parameters() if p.requires_grad)
    optimizer = torch.optim.SGD([weight], lr=lr)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(data)["loss"].backward()
        optimizer.step()
        target_update.step()
    return weight.T.detach()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("soft_dqn", (0.5, 0.0, None)),
        ("m_dqn", (0.5, 0.5, -0.3)),
        ("m_dqn", (0.03, 0.9, -1.0)),
        ("al", (0.0, 0.5, None)),
        ("pal", (0.0, 0.5, None)),
    ],
)
def test_minimizing_the_loss_finds_the_tabular_solution(name: str, setting: Any) -> None:
    """On a stochastic MDP: only the conditional mean of the target matters, as for any squared loss."""
    mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    loss = loss_of(name, torch.zeros(STATES, ACTIONS), *setting, loss_function="l2", diagnostics=False)
    learnt = minimize(loss, all_transitions(mdp), 0.45 * STATES * ACTIONS, 800, period=2)
    torch.testing.assert_close(learnt, solve(name, mdp, *setting), rtol=0, atol=1e-8)


# -- mutual information, the prior learnt ----------------------------------------------------------------------------

BETA = 2.0


def world(name: str) -> TabularMDP:
    """One that ends, or one whose action 2 is never worth a bit."""
    mdp = random_mdp(5, 3, GAMMA, seed=3, branching=3)
    if name == "ending":
        return TabularMDP(mdp.P, mdp.r, GAMMA, torch.arange(5) == 4)
    mdp.r[:, 2] = mdp.r[:, :2].amin(-1) - 1.0
    mdp.P[:, 2] = mdp.P[:, 1]
    return TabularMDP(mdp.P, mdp.r, GAMMA)


def visits(mdp: TabularMDP, pi: Tensor, count: int = 20_000) -> TensorDict:
    """``[count, 1]`` states in the proportions of the policy's stationary distribution, to 1 / count."""
    copies = (tabular.state_occupancy(mdp, pi) * count).round().long()
    states = torch.eye(5, dtype=torch.float64).repeat_interleave(copies, 0)
    return TensorDict({"observation": states.unsqueeze(1)}, [len(states), 1])


@pytest.mark.parametrize("name", ["ending", "useless action"])
def test_with_the_prior_learnt_both_find_the_joint_fixed_point(name: str) -> None:
    """Every 5 steps of gradient descent the prior sees the states that the policy visits."""
    mdp, prior, actor = world(name), ActionPrior(3, beta=BETA, floor=1e-9), table(torch.zeros(5, 3))
    acting = ~mdp.terminal
    loss = objectives.MutualInformationDQNLoss(actor, prior=prior, loss_function="l2", diagnostics=False)
    loss.make_value_estimator(gamma=GAMMA)
    update, data = PriorUpdate(prior, actor, rate=0.5), all_transitions(mdp)
    for i in range(120):
        learnt = minimize(loss, data, 0.45 * int(acting.sum()) * 3, 5, period=1)
        if i < 100:
            update(visits(mdp, prior.policy(learnt)))
    exact = tabular.mutual_information_iteration(mdp, BETA, occupancy="stationary")
    torch.testing.assert_close(prior.log_prior.exp(), exact.prior, rtol=0, atol=1e-4)
    torch.testing.assert_close(learnt[acting], exact.q[acting], rtol=0, atol=1e-3)
    assert (exact.prior - 1 / 3).abs().max() > 0.05
    if name == "useless action":
        assert exact.prior[2] < 1e-9 and prior.log_prior[2].exp() < 1e-8 and prior.log_prior.isfinite().all()
