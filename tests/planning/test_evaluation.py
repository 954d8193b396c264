"""Values of leaves: the returns of random rollouts, and those of a network."""

from __future__ import annotations

import torch

from torchrl_reg.planning import QEvaluation, RandomRollout, TabularModel
from torchrl_reg.regularizers import Entropy, HardMax
from torchrl_reg.tabular import TabularMDP


def test_a_rollout_is_the_discounted_return_until_the_end() -> None:
    P = torch.zeros(4, 1, 4)
    P[[0, 1, 2, 3], 0, [1, 2, 3, 3]] = 1.0
    mdp = TabularMDP(P, torch.tensor([[1.0], [2.0], [4.0], [8.0]]), 0.9, torch.tensor([False, False, False, True]))
    for max_steps, longest in ((9, 1 + 0.5 * 2 + 0.25 * 4), (2, 1 + 0.5 * 2)):
        found = RandomRollout(TabularModel(mdp), max_steps=max_steps, gamma=0.5)(torch.tensor([2, 0, 2, 1]))
        assert found.value.tolist() == [4.0, longest, 4.0, 2 + 0.5 * 4]


def test_a_network_values_leaves() -> None:
    network = torch.nn.Linear(3, 4).double()
    observation = torch.randn(5, 3, dtype=torch.float64)
    q = network(observation).detach()
    soft = QEvaluation(network, Entropy(0.5), observe=lambda state: observation[state])(torch.tensor([4, 1]))
    found = (soft.q, soft.value, soft.prior)
    expected = (q, 0.5 * torch.logsumexp(q / 0.5, -1), (q / 0.5).softmax(-1))
    torch.testing.assert_close(found, tuple(each[[4, 1]] for each in expected))
    hard = QEvaluation(network, HardMax(), prior_tau=0.3, use_q=False)(observation)
    assert hard.q is None
    torch.testing.assert_close((hard.value, hard.prior), (q.amax(-1), (q / 0.3).softmax(-1)))
