"""Losses over a policy against exact dynamic programming: one-hot features, linear logits and values, float64."""

from __future__ import annotations

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


def linear(table: Tensor) -> nn.Linear:
    net = nn.Linear(STATES, table.shape[-1], bias=False, dtype=torch.float64)
    net.weight.data.copy_(table.T)
    return net


def networks(log_pi: Tensor | None = None, v: Tensor | None = None) -> tuple[Any, Any]:
    """By default the iterate 0 of the solvers: a uniform policy and the soft value of q = 0."""
    log_pi = torch.zeros(STATES, ACTIONS, dtype=torch.float64) if log_pi is None else log_pi
    v = torch.full((STATES,), TAU * torch.tensor(float(ACTIONS)).log().item(), dtype=torch.float64) if v is None else v
    actor = ProbabilisticActor(
        TensorDictModule(linear(log_pi), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(linear(v.unsqueeze(-1)), in_keys=["observation"])


def tables(loss: Any) -> tuple[Tensor, Tensor]:
    """ln pi [S, A] and V [S]."""
    logits, v = (getattr(loss, f"{n}_network_params").flatten_keys(".") for n in ("actor", "value"))
    logits, v = ([x for x in p.values() if x.ndim == 2][0].detach().T for p in (logits, v))
    return logits.log_softmax(-1), v.squeeze(-1)


def all_transitions(mdp: tabular.TabularMDP) -> TensorDict:
    """Every (s, a, s') of positive probability, with that probability as its weight."""
    s, a, following = mdp.P.nonzero(as_tuple=True)
    eye, stop = torch.eye(STATES, dtype=torch.float64), torch.zeros(len(s), 1, dtype=torch.bool)
    ends = {"reward": mdp.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
    return TensorDict(
        {
            "observation": eye[s],
            "action": a,
            "priority_weight": mdp.P[s, a, following],
            "next": {"observation": eye[following], **ends},
        },
        [len(s)],
    )


def minimize(loss: Any, data: TensorDict) -> None:
    """The exact minimum, the lagged networks held fixed."""
    settings = {"lr": 1.0, "max_iter": 400, "history_size": 40, "tolerance_grad": 1e-13, "tolerance_change": 1e-18}
    optimizer = torch.optim.LBFGS(list(loss.parameters()), line_search_fn="strong_wolfe", **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(data)["loss"]
        value.backward()
        return value

    optimizer.step(closure)


def soft_optimum(mdp: tabular.TabularMDP, tau: float) -> tuple[Tensor, Tensor]:
    best = tabular.soft_value_iteration(mdp, tau)
    return best.tau_log_pi / tau, best.v


def gradient(loss: Any, data: TensorDict) -> Tensor:
    parts = torch.autograd.grad(loss(data)["loss"], list(loss.parameters()))
    return torch.cat([x.flatten() for x in parts])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_exact_minimization_is_implicit_q_iteration(alpha: float) -> None:
    """Iterate by iterate, on a stochastic MDP; and it is mirror descent, hence Munchausen one iterate apart."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=3, branching=3)
    loss = ImplicitQLoss(*networks(), tau=TAU, alpha=alpha).make_value_estimator(gamma=GAMMA)
    update = HardTargetUpdate(loss, period_updates=1)
    data = all_transitions(mdp)
    exact = tabular.implicit_q_iteration(mdp, TAU, alpha, num_iterations=6, return_iterates=True).iterates
    for k in range(1, 7):
        minimize(loss, data)
        update.step()
        log_pi, v = tables(loss)
        torch.testing.assert_close(v, exact[k].v, rtol=0, atol=1e-7)
        torch.testing.assert_close(TAU * log_pi, exact[k].tau_log_pi, rtol=0, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.5, pytest.param(0.9, marks=pytest.mark.slow)])
def test_iteration_converges_to_the_regularized_optimum(alpha: float) -> None:
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=4, branching=3)
    loss = ImplicitQLoss(*networks(), tau=TAU, alpha=alpha, diagnostics=False).make_value_estimator(gamma=GAMMA)
    update = HardTargetUpdate(loss, period_updates=1)
    data = all_transitions(mdp)
    for _ in range(110 if alpha == 0.9 else 60):  # the slower of gamma^k and alpha^k
        minimize(loss, data)
        update.step()
    log_pi, v = tables(loss)
    best_log_pi, best_v = soft_optimum(mdp, (1 - alpha) * TAU)
    torch.testing.assert_close(v, best_v, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_pi.exp(), best_log_pi.exp(), rtol=0, atol=1e-4)
    for solution in (
        tabular.implicit_q_iteration(mdp, TAU, alpha),
        tabular.munchausen_value_iteration(mdp, TAU, alpha),
    ):
        torch.testing.assert_close(v, solution.v, rtol=0, atol=1e-4)
        torch.testing.assert_close(log_pi.exp(), solution.pi, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("residual", [False, True])
def test_error_and_gradient_vanish_at_the_optimum_of_a_deterministic_mdp(alpha: float, residual: bool) -> None:
    for seed in range(3):
        mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=seed, deterministic=True)
        data = all_transitions(mdp).exclude("priority_weight")
        settings = {"alpha": alpha, "residual": residual, "delay_actor": False, "delay_value": False}
        settings |= {"loss_function": "l1", "reduction": "none"}
        for scale, zero in ((1.0, True), (1.1, False)):
            loss = ImplicitQLoss(*networks(*soft_optimum(mdp, scale * (1 - alpha) * TAU)), tau=TAU, **settings)
            error = loss.make_value_estimator(gamma=GAMMA)(data)["loss"]
            assert (error.max() < 1e-10) if zero else (error.max() > 1e-3)
            loss.loss_function, loss.reduction = "l2", "mean"
            assert (gradient(loss, data).abs().max() < 1e-10) == zero


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_only_the_residual_form_is_biased_where_transitions_are_stochastic(alpha: float) -> None:
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=5, branching=3)
    data = all_transitions(mdp)
    optimum = soft_optimum(mdp, (1 - alpha) * TAU)
    for residual in (False, True):
        settings = {"alpha": alpha, "residual": residual, "delay_actor": False, "delay_value": False}
        loss = ImplicitQLoss(*networks(*optimum), tau=TAU, **settings).make_value_estimator(gamma=GAMMA)
        assert loss(data)["loss"] > 1e-3  # the variance of the next state's value
        largest = gradient(loss, data).abs().max()
        assert (largest > 1e-3) if residual else (largest < 1e-10)


def walks(mdp: tabular.TabularMDP, rows: int, length: int) -> TensorDict:
    """Sequences of a uniform behaviour."""
    generator = torch.Generator().manual_seed(0)
    eye, s, steps = torch.eye(STATES, dtype=torch.float64), torch.arange(rows) % STATES, []
    for _ in range(length):
        a = torch.randint(ACTIONS, (rows,), generator=generator)
        following = mdp.P[s, a].argmax(-1)
        stop = torch.zeros(rows, 1, dtype=torch.bool)
        ends = {"reward": mdp.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
        row = {"observation": eye[s], "action": a, "next": {"observation": eye[following], **ends}}
        steps.append(TensorDict(row, [rows]))
        s = following
    return torch.stack(steps, 1)


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_path_consistency_learns_the_soft_optimum(lam: float) -> None:
    """With lam > 0 in rounds, the reference being the policy of the round before: the KL term fades out."""
    mdp = tabular.random_mdp(STATES, ACTIONS, GAMMA, seed=6, deterministic=True)
    data = walks(mdp, 20, 6)
    loss = PathConsistencyLoss(*networks(), tau=TAU, lam=lam, rollout=3, diagnostics=False)
    loss.make_value_estimator(gamma=GAMMA)
    update = HardTargetUpdate(loss, period_updates=1)
    for _ in range(25 if lam else 1):
        minimize(loss, data)
        update.step()
    log_pi, v = tables(loss)
    best_log_pi, best_v = soft_optimum(mdp, TAU)
    torch.testing.assert_close(v, best_v, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_pi, best_log_pi, rtol=0, atol=1e-4)
    assert loss(data)["loss"] < 1e-9
