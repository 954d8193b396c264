"""Finite MDPs and exact regularized dynamic programming in float64: the oracle of the losses.

Every solver takes ``(mdp, ..., num_iterations, tol, q0, return_iterates, noise)`` and returns a
:class:`Solution`. Iterate k holds the action values ``q_k`` with the policy that is greedy to them
(``pi_{k+1}`` in the papers) and the value of both.
"""

from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.mirror_descent import mirror_descent_value_iteration
from torchrl_reg.tabular.munchausen import (
    advantage_learning,
    implicit_q_iteration,
    munchausen_value_iteration,
)
from torchrl_reg.tabular.mutual_information import (
    PriorIterate,
    PriorSolution,
    blahut_arimoto,
    mutual_information,
    mutual_information_iteration,
    state_occupancy,
)
from torchrl_reg.tabular.solution import Iterate, Solution
from torchrl_reg.tabular.value_iteration import (
    policy_evaluation,
    soft_value_iteration,
    value_iteration,
)
from torchrl_reg.tabular.worlds import MIRL_WORLDS, chain, gridworld, gridworld_cells, random_mdp

__all__ = [
    "state_occupancy",
    "mutual_information_iteration",
    "mutual_information",
    "blahut_arimoto",
    "PriorSolution",
    "PriorIterate",
    "MIRL_WORLDS",
    "Iterate",
    "Solution",
    "TabularMDP",
    "advantage_learning",
    "chain",
    "gridworld",
    "gridworld_cells",
    "implicit_q_iteration",
    "mirror_descent_value_iteration",
    "munchausen_value_iteration",
    "policy_evaluation",
    "random_mdp",
    "soft_value_iteration",
    "value_iteration",
]
