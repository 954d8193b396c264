"""MIRL's losses against exact dynamic programming: prior held, and prior learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.modules import ActionPrior, ImplicitQuantileNetwork, PriorUpdate, QuantileQActor
from torchrl_reg.objectives import HardTargetUpdate, MutualInformationDQNLoss, MutualInformationIQNLoss
from torchrl_reg.tabular import TabularMDP, mutual_information_iteration, random_mdp, state_occupancy

GAMMA, BETA, STATES, ACTIONS = 0.9, 2.0, 5, 3
RHO = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def all_transitions(mdp: TabularMDP) -> TensorDict:
    """Every (s, a, s') of positive probability, with that probability as its weight; terminal states act no more."""
    s, a, following = (mdp.P * (~mdp.terminal).double()[:, None, None]).nonzero(as_tuple=True)
    eye = torch.eye(mdp.num_states, dtype=torch.float64)
    stop = mdp.terminal[following].unsqueeze(-1)
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


def quantile_table(q: torch.Tensor) -> QuantileQActor:
    """Quantile values that do not depend on the fraction."""
    net = ImplicitQuantileNetwork(
        nn.Identity(), num_features=STATES, num_actions=ACTIONS, num_cosines=4, num_cells=STATES
    ).double()
    for p in net.parameters():
        nn.init.zeros_(p)
    nn.init.ones_(net.embedding.bias)
    nn.init.eye_(net.head[0].weight)
    net.head[2].weight.data.copy_(q.T)
    return QuantileQActor(net, spec=Categorical(ACTIONS), num_quantiles=3)


def worlds() -> dict[str, TabularMDP]:
    """A random one, one that ends, and one whose action 2 is never worth a bit."""
    mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    ending = TabularMDP(mdp.P, mdp.r, GAMMA, torch.arange(STATES) == 4)
    worse = mdp.r.clone()
    worse[:, 2] = worse[:, :2].amin(-1) - 1.0
    useless = mdp.P.clone()
    useless[:, 2] = useless[:, 1]
    return {"random": mdp, "ending": ending, "useless action": TabularMDP(useless, worse, GAMMA)}


@pytest.mark.parametrize("world", ["random", "ending"])
@pytest.mark.parametrize("quantile", [False, True])
def test_td_error_vanishes_at_the_fixed_point(world: str, quantile: bool) -> None:
    mdp = worlds()[world]
    deterministic = torch.nn.functional.one_hot(mdp.P.argmax(-1), STATES).double()
    mdp = TabularMDP(deterministic, mdp.r, GAMMA, mdp.terminal)
    q = mutual_information_iteration(mdp, BETA, prior0=RHO, num_iterations=0).q
    if quantile:
        loss: Any = MutualInformationIQNLoss(quantile_table(q), prior=RHO, beta=BETA, delay_value=False, kappa=0.0)
    else:
        loss = MutualInformationDQNLoss(table(q), prior=RHO, beta=BETA, delay_value=False, loss_function="l1")
    loss.make_value_estimator(gamma=GAMMA)
    data = all_transitions(mdp).exclude("priority_weight")
    assert loss(data)["td_error"] < 1e-6 and loss(data)["squared_td_error"] < 1e-20
    loss.prior.assign(torch.tensor([0.5, 0.3, 0.2]))
    assert loss(data)["td_error"] > 1e-2


def learn(mdp: TabularMDP, prior: ActionPrior, prior_updates: int) -> torch.Tensor:
    """Gradient descent on all transitions; every 5 steps the prior sees the states that the policy visits."""
    actor = table()
    loss = MutualInformationDQNLoss(actor, prior=prior, loss_function="l2", diagnostics=False)
    loss.make_value_estimator(gamma=GAMMA)
    target_update = HardTargetUpdate(loss, period_updates=1)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.45 * int((~mdp.terminal).sum()) * ACTIONS)
    prior_update = PriorUpdate(prior, actor, rate=0.5)
    data = all_transitions(mdp)
    for i in range(5 * prior_updates + 260):
        optimizer.zero_grad()
        loss(data)["loss"].backward()
        optimizer.step()
        target_update.step()
        if i % 5 == 4 and i < 5 * prior_updates:
            prior_update(visits(mdp, prior.policy(actor.module[0].module.weight.T.detach())))
    return next(loss.parameters()).T.detach()


def visits(mdp: TabularMDP, pi: torch.Tensor, count: int = 20_000) -> TensorDict:
    """``[count, 1]`` states in the proportions of the policy's stationary distribution, to 1 / count."""
    mu = state_occupancy(mdp, pi)
    copies = (mu * count).round().long()
    states = torch.arange(mdp.num_states).repeat_interleave(copies)
    return TensorDict({"observation": torch.eye(mdp.num_states, dtype=torch.float64)[states]}, [len(states)]).reshape(
        -1, 1
    )


@pytest.mark.parametrize("world", ["random", "ending"])
def test_with_the_prior_held_the_loss_finds_the_soft_fixed_point(world: str) -> None:
    mdp = worlds()[world]
    learnt = learn(mdp, ActionPrior(ACTIONS, probabilities=RHO, beta=BETA), 0)
    exact = mutual_information_iteration(mdp, BETA, prior0=RHO, num_iterations=0).q
    torch.testing.assert_close(learnt[~mdp.terminal], exact[~mdp.terminal], rtol=0, atol=1e-8)


@pytest.mark.parametrize("world", ["random", "ending", "useless action"])
def test_with_the_prior_learnt_both_find_the_joint_fixed_point(world: str) -> None:
    mdp = worlds()[world]
    prior = ActionPrior(ACTIONS, beta=BETA, floor=1e-9)
    learnt = learn(mdp, prior, 120)
    exact = mutual_information_iteration(mdp, BETA, occupancy="stationary")
    torch.testing.assert_close(prior.log_prior.exp(), exact.prior, rtol=0, atol=1e-4)
    torch.testing.assert_close(learnt[~mdp.terminal], exact.q[~mdp.terminal], rtol=0, atol=1e-3)
    assert (exact.prior - 1 / ACTIONS).abs().max() > 0.05
    if world == "useless action":
        assert exact.prior[2] < 1e-9 and prior.log_prior[2].exp() < 1e-8 and prior.log_prior.isfinite().all()
