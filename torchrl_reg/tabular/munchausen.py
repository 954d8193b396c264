"""Munchausen value iteration, its temperature-0 limit advantage learning, and implicit Q-values.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from torchrl_reg.functional import munchausen_bonus, soft_policy, soft_value
from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.solution import Iterate, Loop, Solution, check_alpha, iterate
from torchrl_reg.tabular.value_iteration import soft_iterate


def munchausen_value_iteration(
    mdp: TabularMDP, tau: float, alpha: float, clip_min: float | None = None, **loop: Unpack[Loop]
) -> Solution:
    r"""Munchausen value iteration, the Bellman update of the bonus-shaped reward:

    .. math::
        q \leftarrow r + \alpha [\tau \ln \pi]_{l_0}^{0} + \gamma P \langle \pi, q - \tau \ln \pi
        \rangle, \qquad \pi = softmax(q / \tau)

    Unclipped it is mirror-descent value iteration with ``lam = alpha * tau`` and temperature
    ``(1 - alpha) * tau`` on ``q' = q - alpha * tau * ln pi_k``, ``pi_k`` being the policy of the
    iterate before: equal policies and values at every k, given a uniform ``pi_0`` and
    ``q'_0 = q_0 - alpha * tau * ln pi_0``. (The Munchausen slides print ``q - tau * ln pi_k``,
    which holds only for alpha = 1.)

    At the fixed point the action gaps are those of soft value iteration at temperature
    ``(1 - alpha) * tau``, divided by ``1 - alpha``. The published constant ``(1 + alpha) / (1 -
    alpha)`` is not that of this operator. A clip breaks the law: it widens a gap by at most
    ``alpha * |clip_min|``.

    Source: Vieillard et al. 2020 (Munchausen RL).

    Args:
        mdp: the MDP.
        tau: temperature >= 0, in reward units; 0 is advantage learning.
        alpha: Munchausen weight in [0, 1]; 1 needs ``num_iterations``.
        clip_min: lower clip <= 0 of ``tau * ln pi``, in reward units; None does not clip.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution, values ``[S, A]``.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    check_alpha(alpha, loop.get("num_iterations"))
    return iterate(
        mdp,
        lambda it: mdp.backup(it.v, munchausen_bonus(it.tau_log_pi, alpha, clip_min)),
        lambda q, _: soft_iterate(mdp, q, tau),
        **loop,
    )


def advantage_learning(mdp: TabularMDP, alpha: float, *, persistent: bool = False, **loop: Unpack[Loop]) -> Solution:
    r"""Advantage learning :math:`q \leftarrow r + \gamma P \max q - \alpha (\max q - q)`.

    ``max q`` converges to the optimal value and the action gaps to the optimal ones divided by ``1 - alpha``. The
    persistent form subtracts ``alpha`` times the smaller of the gaps of the same action at this and at the next state,
    in expectation over the next state (at a terminal one, the first gap): the mean of what the sampled loss regresses
    to. The operator of the paper, ``max(T_AL q, r + gamma * P q(., a))``, differs from it in the discount of the second
    gap and where transitions are random.

    Source: Baird 1999; Bellemare et al. 2016 (Increasing the action gap); persistent as in pfrl.

    Args:
        mdp: the MDP.
        alpha: weight in [0, 1]; 1 needs ``num_iterations``.
        persistent: take the smaller gap.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution, values ``[S, A]``; ``tau_log_pi`` is ``q - max q``.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    check_alpha(alpha, loop.get("num_iterations"))

    def backup(it: Iterate) -> Tensor:
        gap = _persistent_gap(mdp, -it.tau_log_pi) if persistent else -it.tau_log_pi
        return mdp.backup(it.v, -alpha * gap)

    return iterate(mdp, backup, lambda q, _: soft_iterate(mdp, q, 0.0), **loop)


def implicit_q_iteration(mdp: TabularMDP, tau: float, alpha: float = 0.0, **loop: Unpack[Loop]) -> Solution:
    r"""Implicit Q iteration, which solves each update exactly for a policy and a value:

    .. math:: \tau \ln \pi' + V' = r + \alpha \tau \ln \pi + \gamma P V

    The action value is never stored, only its parts ``tau_log_pi`` and ``v``; ``q`` is their sum.
    With the initial conditions of :func:`munchausen_value_iteration`, policy and value are those of
    mirror-descent value iteration with ``lam = alpha * tau`` and temperature ``(1 - alpha) * tau``.

    Source: Vieillard et al. 2021 (Implicitly regularized RL), eq. 2 and theorem 1.

    Args:
        mdp: the MDP.
        tau: temperature >= 0, in reward units.
        alpha: Munchausen weight in [0, 1]; 0 is soft value iteration, 1 needs ``num_iterations``.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution, values ``[S, A]``; ``v`` and ``tau_log_pi`` are its two parts.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    check_alpha(alpha, loop.get("num_iterations"))

    def improve(target: Tensor, _: Iterate | None) -> Iterate:
        v = soft_value(target, tau)
        tau_log_pi = target - v.unsqueeze(-1)
        pi = soft_policy(tau_log_pi, tau)
        return Iterate(mdp.mask_q(tau_log_pi + v.unsqueeze(-1)), mdp.mask_v(v), pi, tau_log_pi)

    return iterate(mdp, lambda it: mdp.backup(it.v, alpha * it.tau_log_pi), improve, **loop)


def _persistent_gap(mdp: TabularMDP, gap: Tensor) -> Tensor:
    """Expected smaller gap over the next state ``[S, A]``; a terminal one keeps the first gap."""
    here = gap.unsqueeze(-1)
    smaller = torch.minimum(here, gap.T.unsqueeze(0))
    return (mdp.P * torch.where(mdp.terminal, here, smaller)).sum(-1)
