"""Finite MDPs and exact regularized dynamic programming in float64: the oracle of the losses.

Every solver takes ``(mdp, ..., num_iterations, tol, q0, return_iterates, noise)``, the last five as
:class:`~torchrl_reg.tabular.dynamic_programming.Loop` describes them, and returns a :class:`Solution`. Iterate k holds
the action values ``q_k`` with the policy that is greedy to them (``pi_{k+1}`` in the papers) and the value of both.
:class:`TabularAgents` learn from samples instead.
"""

from torchrl_reg.tabular.agents import METHODS, Method, TabularAgents, episode_return
from torchrl_reg.tabular.dynamic_programming import (
    Iterate,
    Solution,
    advantage_learning,
    implicit_q_iteration,
    mirror_descent_value_iteration,
    munchausen_value_iteration,
    policy_evaluation,
    soft_value_iteration,
    tsallis_value_iteration,
    value_iteration,
)
from torchrl_reg.tabular.error_propagation import averaged_errors, policy_loss_bounds, policy_losses
from torchrl_reg.tabular.inference import (
    Composition,
    Messages,
    VIRELIterate,
    VIRELSolution,
    forward_messages,
    optimality_messages,
    soft_composition,
    state_visits,
    virel_iteration,
    virel_objective,
)
from torchrl_reg.tabular.mdp import MIRL_WORLDS, TabularMDP, chain, gridworld, gridworld_cells, random_mdp
from torchrl_reg.tabular.mutual_information import (
    PriorIterate,
    PriorSolution,
    blahut_arimoto,
    mutual_information,
    mutual_information_iteration,
    state_occupancy,
)
from torchrl_reg.tabular.quadrature import Quadrature, continuous_soft_q_iteration, gauss_legendre

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
