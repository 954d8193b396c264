"""Finite MDPs and exact regularized dynamic programming in float64: the oracle of the losses.

Every solver takes ``(mdp, ..., num_iterations, tol, q0, return_iterates, noise)``, the last five as
:class:`~torchrl_reg.tabular.solution.Loop` describes them, and returns a :class:`Solution`. Iterate k holds the action
values ``q_k`` with the policy that is greedy to them (``pi_{k+1}`` in the papers) and the value of both.
:class:`TabularAgents` learn from samples instead.
"""

from torchrl_reg.tabular.agents import METHODS, Method, TabularAgents, episode_return
from torchrl_reg.tabular.composition import Composition, soft_composition
from torchrl_reg.tabular.error_propagation import averaged_errors, policy_loss_bounds, policy_losses
from torchrl_reg.tabular.inference import Messages, forward_messages, optimality_messages, state_visits
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
from torchrl_reg.tabular.quadrature import Quadrature, continuous_soft_q_iteration, gauss_legendre
from torchrl_reg.tabular.solution import Iterate, Solution
from torchrl_reg.tabular.tsallis import tsallis_value_iteration
from torchrl_reg.tabular.value_iteration import (
    policy_evaluation,
    soft_value_iteration,
    value_iteration,
)
from torchrl_reg.tabular.virel import VIRELIterate, VIRELSolution, virel_iteration, virel_objective
from torchrl_reg.tabular.worlds import MIRL_WORLDS, chain, gridworld, gridworld_cells, random_mdp

__all__ = [
    "METHODS",
    "MIRL_WORLDS",
    "Composition",
    "Iterate",
    "Messages",
    "Method",
    "PriorIterate",
    "PriorSolution",
    "Quadrature",
    "Solution",
    "TabularAgents",
    "TabularMDP",
    "VIRELIterate",
    "VIRELSolution",
    "advantage_learning",
    "averaged_errors",
    "blahut_arimoto",
    "chain",
    "continuous_soft_q_iteration",
    "episode_return",
    "forward_messages",
    "gauss_legendre",
    "gridworld",
    "gridworld_cells",
    "implicit_q_iteration",
    "mirror_descent_value_iteration",
    "munchausen_value_iteration",
    "mutual_information",
    "mutual_information_iteration",
    "optimality_messages",
    "policy_evaluation",
    "policy_loss_bounds",
    "policy_losses",
    "random_mdp",
    "soft_composition",
    "soft_value_iteration",
    "state_occupancy",
    "state_visits",
    "tsallis_value_iteration",
    "value_iteration",
    "virel_iteration",
    "virel_objective",
]
