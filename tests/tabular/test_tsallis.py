"""The fixed point of the Tsallis entropies, and the loss and the regularizer at it."""

from __future__ import annotations

import itertools

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import HardTargetUpdate, QLearningLoss
from torchrl_reg.regularizers import Tsallis
from torchrl_reg.tabular import random_mdp, soft_value_iteration, tsallis_value_iteration, value_iteration

MDP = random_mdp(6, 4, 0.9, seed=1)


def _best_over_supports(q: Tensor, tau: float) -> tuple[float, Tensor]:
    """The quadratic program ``max <pi, q> - tau / 2 (sum pi^2 - 1)`` over the simplex, support by support."""
    best, chosen = -float("inf"), q
    for size in range(1, len(q) + 1):
        for support in itertools.combinations(range(len(q)), size):
            rows = list(support)
            pi = torch.zeros_like(q)
            pi[rows] = q[rows] / tau - (q[rows].sum() / tau - 1) / size
            if (pi >= 0).all():
                value = float((pi * q).sum() - tau / 2 * (pi.square().sum() - 1))
                best, chosen = max((best, chosen), (value, pi), key=lambda pair: pair[0])
    return best, chosen


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_fixed_point_solves_the_sparse_bellman_equation(tau: float) -> None:
    solution = tsallis_value_iteration(MDP, tau)
    for s in range(MDP.num_states):
        value, pi = _best_over_supports(solution.q[s], tau)
        assert abs(value - float(solution.v[s])) < 1e-10
        torch.testing.assert_close(solution.pi[s], pi, rtol=0, atol=1e-10)
    torch.testing.assert_close(solution.q, MDP.backup(solution.v), rtol=0, atol=1e-10)


@pytest.mark.parametrize("index", [1.5, 2.0, 3.0])
def test_loss_and_regularizer_are_at_rest_there(index: float) -> None:
    """The regularizer's own form, and a loss over every transition: no gradient at the fixed point."""
    tau = 0.3
    solution = tsallis_value_iteration(MDP, tau, index=index)
    out = Tsallis(tau, q=index)(solution.q)
    for ours, theirs in ((out.value, solution.v), (out.pi, solution.pi), (out.tau_log_pi, solution.tau_log_pi)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    net = nn.Linear(MDP.num_states, MDP.num_actions, bias=False, dtype=torch.float64)
    net.weight.data.copy_(solution.q.T)
    loss = QLearningLoss(
        QValueActor(net, spec=Categorical(MDP.num_actions)),
        regularizer=Tsallis(tau, q=index),
        loss_function="l2",
        reduction="sum",
    ).make_value_estimator(gamma=MDP.gamma)
    HardTargetUpdate(loss, period_updates=1)
    s, a, following = MDP.P.nonzero(as_tuple=True)
    eye, stop = torch.eye(MDP.num_states, dtype=torch.float64), torch.zeros(len(s), 1, dtype=torch.bool)
    ends = {"observation": eye[following], "reward": MDP.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
    weights = {"priority_weight": MDP.P[s, a, following]}
    data = TensorDict({"observation": eye[s], "action": a, "next": ends, **weights}, [len(s)])
    loss(data)["loss"].backward()
    gradient = next(iter(loss.parameters())).grad
    assert gradient is not None and gradient.abs().max() < 1e-9


def test_limits() -> None:
    """Temperature to 0: the maximum. Index to 1: the soft value. And the published bound."""
    hard = value_iteration(MDP)
    torch.testing.assert_close(tsallis_value_iteration(MDP, 1e-9).v, hard.v, rtol=0, atol=1e-7)
    near = tsallis_value_iteration(MDP, 0.3, index=1.001)
    torch.testing.assert_close(near.v, soft_value_iteration(MDP, 0.3).v, rtol=0, atol=1e-2)
    above = tsallis_value_iteration(MDP, 0.3).v - hard.v
    bound = 0.3 * (1 - 1 / MDP.num_actions) / (2 * (1 - MDP.gamma))
    assert (above >= 0).all() and (above <= bound).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tau": 0.0}, "tau must be a finite temperature > 0, got 0.0"),
        ({"index": 1.0}, "index must be a finite number"),
    ],
)
def test_bad_input(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tsallis_value_iteration(MDP, **{"tau": 0.3, **arguments})
