"""Value iteration, its entropy-regularized form, and the exact value of a given policy.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from torchrl_reg.functional import policy_entropy, scaled_log_policy, soft_policy, soft_value
from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.solution import Iterate, Loop, Solution, check_prior, iterate


def value_iteration(mdp: TabularMDP, **loop: Unpack[Loop]) -> Solution:
    r"""Value iteration :math:`q \leftarrow r + \gamma P \max q`.

    Source: Bellman 1957.

    Args:
        mdp: the MDP.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution, values ``[S, A]`` in reward units; ``tau_log_pi`` is ``q - max q``.

    Raises:
        ValueError: if ``num_iterations``, ``tol``, ``q0`` or ``noise`` does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    return soft_value_iteration(mdp, 0.0, **loop)


def soft_value_iteration(mdp: TabularMDP, tau: float, *, prior: Tensor | None = None, **loop: Unpack[Loop]) -> Solution:
    r"""Soft value iteration :math:`q \leftarrow r + \gamma P F_\tau(q)`, with the soft value.

    A contraction with modulus ``gamma``, whose fixed point without a prior satisfies
    ``0 <= v_tau - v* <= tau * ln A / (1 - gamma)``. A uniform prior lowers it by the upper bound and leaves the policy
    as it is.

    Source: Haarnoja et al. 2017 (soft Q-learning).

    Args:
        mdp: the MDP.
        tau: temperature >= 0, in reward units; 0 is value iteration.
        prior: probabilities ``[A]`` that weight the actions; None weights each with 1.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution.

    Raises:
        ValueError: if ``tau``, ``prior``, ``num_iterations``, ``tol``, ``q0`` or ``noise`` does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    log_prior = None if prior is None else check_prior("prior", prior, mdp).log()
    return iterate(
        mdp, lambda current: mdp.backup(current.v), lambda q, _: soft_iterate(mdp, q, tau, log_prior), **loop
    )


def policy_evaluation(mdp: TabularMDP, pi: Tensor, tau: float = 0.0) -> Solution:
    r"""Value of a policy, :math:`v = r_\pi + \tau H(\pi) + \gamma P_\pi v`, by a direct solve.

    ``q = r + gamma * P v`` leaves out the entropy of the first step, as in every solver here.

    Source: the definition, solved as a linear system.

    Args:
        mdp: the MDP.
        pi: probabilities ``[S, A]``.
        tau: temperature >= 0, in reward units.

    Returns:
        The solution, with 0 iterations.

    Raises:
        ValueError: if ``pi`` has another shape or is no distribution, or ``tau`` is negative.
    """
    if pi.shape != mdp.r.shape:
        raise ValueError(f"pi must have shape {list(mdp.r.shape)}, got {list(pi.shape)}.")
    pi = pi.to(mdp.r)
    if (pi < 0).any() or ((pi.sum(-1) - 1).abs() > 1e-6).any():
        raise ValueError(
            f"pi must be a probability distribution in every state, got rows of sum {pi.sum(-1).tolist()}."
        )
    if not 0.0 <= tau < math.inf:
        raise ValueError(f"tau must be a finite temperature >= 0, got {tau}.")
    reward = mdp.mask_v((pi * mdp.r).sum(-1) + tau * policy_entropy(pi))
    v = expected_return(mdp, pi, reward)
    tau_log_pi = torch.where(pi > 0, tau * pi.log(), -math.inf)
    return Solution(mdp.backup(v), v, pi, tau_log_pi, iterations=0, residual=0.0)


def expected_return(mdp: TabularMDP, pi: Tensor, reward: Tensor) -> Tensor:
    """Solution ``[S]`` of ``v = reward + gamma P_pi v`` for rewards ``[S]``."""
    transition = torch.einsum("sa,sat->st", pi, mdp.P) * (~mdp.terminal).to(pi).unsqueeze(-1)
    return torch.linalg.solve(torch.eye(mdp.num_states).to(pi) - mdp.gamma * transition, reward)


def soft_iterate(mdp: TabularMDP, q: Tensor, tau: float, log_prior: Tensor | None = None) -> Iterate:
    """Iterate of ``q`` under the policy ``softmax(log_prior + q / tau)`` and its soft value."""
    return Iterate(
        q=q,
        v=mdp.mask_v(soft_value(q, tau, log_prior=log_prior)),
        pi=soft_policy(q, tau, log_prior=log_prior),
        tau_log_pi=scaled_log_policy(q, tau, log_prior=log_prior),
    )
