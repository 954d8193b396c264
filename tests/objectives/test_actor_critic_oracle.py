"""Losses over a policy against exact dynamic programming: one-hot features, linear logits and values, float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator

from torchrl_reg import tabular
from torchrl_reg.objectives import HardTargetUpdate, ImplicitQLoss, PathConsistencyLoss

STATES, ACTIONS, TAU, GAMMA = 5, 3, 0.5, 0.8


def networks() -> tuple[Any, Any]:
    """Of iterate 0 of the solvers: a uniform policy and the soft value of q = 0."""
    uniform, value = (nn.Linear(STATES, outputs, bias=False, dtype=torch.float64) for outputs in (ACTIONS, 1))
    nn.init.zeros_(uniform.weight)
    nn.init.constant_(value.weight, TAU * math.log(ACTIONS))
    actor = ProbabilisticActor(
        TensorDictModule(uniform, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(value)


def tables(loss: Any) -> tuple[Tensor, Tensor]:
    """V [S] and ln pi [S, A]."""
    v, logits = (next(getattr(loss, f"{name}_network_params").parameters()).data.T for name in ("value", "actor"))
    return v.squeeze(-1), logits.log_softmax(-1)


def rows(mdp: tabular.TabularMDP, s: Tensor, a: Tensor, following: Tensor) -> TensorDict:
    eye, stop = torch.eye(STATES, dtype=torch.float64), torch.zeros(*s.shape, 1, dtype=torch.bool)
    after = {"observation": eye[following], "reward": mdp.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
    return TensorDict({"observation": eye[s], "action": a, "next": after}, s.shape)


def all_transitions(mdp: tabular.TabularMDP) -> TensorDict:
    """Every (s, a, s') of positive probability, with that probability as its weight."""
    found = mdp.P.nonzero(as_tuple=True)
    return rows(mdp, *found).set("priority_weight", mdp.P[found])


def minimize(loss: Any, data: TensorDict, max_iter: int = 400) -> None:
    """The exact minimum, the lagged networks held fixed."""
    settings = {"lr": 1.0, "max_iter": max_iter, "history_size": 40, "tolerance_grad": 1e-13, "tolerance_change": 1e-18}
    optimizer = torch.optim.LBFGS(list(loss.parameters()), line_search_fn="strong_wolfe", **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(data)["loss"]
        value.backward()
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_exact_minimization_is_implicit_q_iteration(alpha: float) -> None:
    """Iterate by iterate, on a stochastic MDP; and it is mirror descent, hence Munchausen one iterate apart."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    loss = ImplicitQLoss(*networks(), tau=TAU, alpha=alpha, diagnostics=False).make_value_estimator(gamma=GAMMA)
    update = HardTargetUpdate(loss, period_updates=1)
    exact = tabular.implicit_q_iteration(mdp, TAU, alpha, num_iterations=6, return_iterates=True).iterates
    for iterate in exact[1:]:
        minimize(loss, all_transitions(mdp))
        update.step()
        v, log_pi = tables(loss)
        torch.testing.assert_close((v, TAU * log_pi), (iterate.v, iterate.tau_log_pi), rtol=0, atol=1e-7)
    assert len(exact) == 7


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_path_consistency_learns_the_soft_optimum(lam: float) -> None:
    """With lam > 0 in rounds, the reference being the policy of the round before: the KL term fades out."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=6, deterministic=True)
    generator, states, actions = torch.Generator().manual_seed(0), [torch.arange(20) % STATES], []
    for _ in range(6):  # sequences of a uniform behaviour
        actions.append(torch.randint(ACTIONS, (20,), generator=generator))
        states.append(mdp.P[states[-1], actions[-1]].argmax(-1))
    data = rows(mdp, *(torch.stack(each, 1) for each in (states[:-1], actions, states[1:])))
    loss = PathConsistencyLoss(*networks(), tau=TAU, lam=lam, rollout=3, diagnostics=False)
    update = HardTargetUpdate(loss.make_value_estimator(gamma=GAMMA), period_updates=1)
    for _ in range(25 if lam else 1):
        minimize(loss, data, max_iter=40 if lam else 400)
        update.step()
    best = tabular.soft_value_iteration(mdp, TAU)
    torch.testing.assert_close(tables(loss), (best.v, best.tau_log_pi / TAU), rtol=0, atol=1e-4)
    assert loss(data)["loss"] < 1e-9
