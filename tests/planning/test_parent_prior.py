"""RENTS with an evaluation: a parent whose untried actions have values already is a prior for its child."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrl_reg.planning import RENTS, Evaluation, mcts
from torchrl_reg.planning.backup import RegularizedBackup


class Line:
    """Each action leads one place further, for a reward of .5."""

    num_actions, stochastic, num_outcomes = 2, False, 1

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((len(state),), 0.5), state + 1, torch.zeros(len(state), dtype=torch.bool)


def always_first(nodes, draw) -> Tensor:
    return torch.zeros(len(nodes.q), dtype=torch.int64)


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_parent_with_untried_actions_is_a_prior_only_if_these_have_values(evaluated: bool) -> None:
    tau, gamma, other = 0.4, 0.9, 0.2
    q = torch.tensor([[1.0, other]]) if evaluated else None
    tree = mcts(
        Line(),
        torch.tensor([0]),
        num_simulations=2,
        select=always_first,
        backup=RegularizedBackup(RENTS(num_simulations=1, tau=tau).regularizer, parent_prior=True),
        evaluate=lambda state: Evaluation(torch.full((len(state),), 0.3), q),
        gamma=gamma,
    )
    # The first simulation gave the root its policy, the second the root's child: both took the first action once.
    q = torch.tensor([0.5 + gamma * 0.3, other], dtype=torch.float64)
    root = (q / tau).softmax(-1)
    child = (root.log() + q / tau).softmax(-1) if evaluated else torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tree.pi[0, 1], child)
    value = tau * torch.logsumexp(root.log() + q / tau, -1) if evaluated else q[0] - tau * torch.tensor(2.0).log()
    torch.testing.assert_close(tree.value[0, 1], value.double())
