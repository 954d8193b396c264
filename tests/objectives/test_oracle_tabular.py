"""Losses against exact dynamic programming: one-hot features, one value per state-action pair, float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tabular_cases import all_transitions, table
from tensordict import TensorDict
from torch import Tensor

from torchrl_reg import objectives, tabular
from torchrl_reg.modules import ActionPrior, PriorUpdate
from torchrl_reg.regularizers import PriorKL
from torchrl_reg.tabular import TabularMDP, random_mdp

GAMMA, STATES, ACTIONS = 0.9, 6, 4
MUNCHAUSEN = ("tau", "alpha", "clip_min")


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
    ("cls", "solver", "settings"),
    [
        (objectives.SoftDQNLoss, tabular.soft_value_iteration, {"tau": 0.5}),
        *(
            (objectives.MunchausenDQNLoss, tabular.munchausen_value_iteration, dict(zip(MUNCHAUSEN, row, strict=True)))
            for row in ((0.5, 0.5, -0.3), (0.5, 0.5, None), (1e-3, 0.0, None), (0.03, 0.9, -1.0))
        ),
        (objectives.AdvantageLearningLoss, tabular.advantage_learning, {"alpha": 0.5}),
        (objectives.AdvantageLearningLoss, tabular.advantage_learning, {"alpha": 0.5, "persistent": True}),
    ],
)
def test_minimizing_the_loss_finds_the_tabular_solution(cls: Any, solver: Any, settings: dict[str, Any]) -> None:
    """On a stochastic MDP: only the conditional mean of the target matters, as for any squared loss."""
    mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    loss = cls(table(torch.zeros(STATES, ACTIONS)), **settings, loss_function="l2", diagnostics=False)
    loss.make_value_estimator(gamma=GAMMA)
    learnt = minimize(loss, all_transitions(mdp), 0.45 * STATES * ACTIONS, 800, period=2)
    torch.testing.assert_close(learnt, solver(mdp, **settings).q, rtol=0, atol=1e-8)


RHO = torch.tensor([0.1, 0.5, 0.25, 0.15], dtype=torch.float64)


@pytest.mark.parametrize("prior", [RHO, None], ids=["prior", "uniform"])
def test_munchausen_over_a_prior_is_mirror_descent(prior: Tensor | None) -> None:
    """Value and policy of a KL to the prior at (1 - alpha) tau, gaps over 1 - alpha; uniform: the entropy's policies.

    With the likely actions' bonus clipped at 0 the policies would differ by .3.
    """
    tau, alpha = 0.5, 0.5
    mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    slots: Any = {"regularizer": PriorKL(tau, prior=prior), "shaping": objectives.Munchausen(alpha, None)}
    loss = objectives.QLearningLoss(table(torch.zeros(STATES, ACTIONS)), **slots, loss_function="l2", diagnostics=False)
    loss.make_value_estimator(gamma=GAMMA)
    learnt = minimize(loss, all_transitions(mdp), 0.45 * STATES * ACTIONS, 800, period=2)
    rho = torch.full_like(RHO, 1 / ACTIONS) if prior is None else prior
    exact = tabular.soft_value_iteration(mdp, (1 - alpha) * tau, prior=rho)
    v = exact.v.unsqueeze(-1)
    torch.testing.assert_close(learnt, v + (exact.q - v) / (1 - alpha), rtol=0, atol=1e-8)
    if prior is None:
        entropy = tabular.munchausen_value_iteration(mdp, tau, alpha)
        torch.testing.assert_close(loss.regularizer.policy(learnt), entropy.pi, rtol=0, atol=1e-8)


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
