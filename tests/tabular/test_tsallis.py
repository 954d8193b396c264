"""The fixed point of the Tsallis entropies, which is an oracle for the regularizer's closed form."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from torchrl_reg.regularizers import Tsallis
from torchrl_reg.tabular import random_mdp, soft_value_iteration, tsallis_value_iteration, value_iteration

MDP = random_mdp(6, 4, 0.9, seed=1)
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(("index", "tau"), [(1.5, 0.3), (2.0, 0.05), (2.0, 0.5), (3.0, 0.3)])
def test_the_fixed_point_solves_the_sparse_bellman_equation(index, tau):
    """``v`` is the greatest ``<pi, q> - Omega(pi)``, at ``pi``; and the regularizer finds the same."""
    solution = tsallis_value_iteration(MDP, tau, index=index)
    close(solution.q, MDP.backup(solution.v))

    def objective(pi):
        return (pi * solution.q).sum(-1) - tau * (pi.pow(index).sum(-1) - 1) / (index * (index - 1))

    close(solution.v, objective(solution.pi))
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(300, 6, 4, dtype=torch.float64, generator=generator)
    for spread in (0.03, 1.0, 10.0):
        pi = (solution.pi.clamp(min=1e-6).log() + spread * others).softmax(-1)
        assert (objective(pi) <= solution.v + 1e-12).all()
    out = Tsallis(tau, q=index)(solution.q)
    for name in ("value", "pi", "tau_log_pi"):
        close(getattr(out, name), getattr(solution, "v" if name == "value" else name))


def test_limits():
    """Temperature to 0: the maximum. Index to 1: the soft value. And the published bound."""
    q0 = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    greedy = partial(tsallis_value_iteration, MDP, q0=q0, num_iterations=0)
    close(greedy(1e-9).v, q0.amax(-1), atol=1e-8)
    close(greedy(0.3, index=1.001).v, soft_value_iteration(MDP, 0.3, q0=q0, num_iterations=0).v, atol=1e-3)
    above = tsallis_value_iteration(MDP, 0.3).v - value_iteration(MDP).v
    assert (above >= 0).all() and (above <= 0.3 * (1 - 1 / 4) / (2 * (1 - MDP.gamma))).all()
