"""Propagation of update errors to the policy: their average in Munchausen value iteration, their sum otherwise.

Shapes: ``S`` states, ``A`` actions, ``K`` updates. Errors ``eps_1`` to ``eps_K`` are what a solver's ``noise`` adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy
from torchrl_reg.tabular.dynamic_programming import Iterate, policy_evaluation
from torchrl_reg.tabular.mdp import TabularMDP


def averaged_errors(errors: Tensor, alpha: float) -> Tensor:
    r"""The errors that reach the values: :math:`E_k = (1 - \alpha) \sum_{j \le k} \alpha^{k - j} \epsilon_j`.

    Their plain average :math:`\frac1k \sum_{j \le k} \epsilon_j` at ``alpha = 1``, the errors themselves at 0.

    For ``alpha < 1`` this is exact: with :math:`h_k = (1 - \alpha) q_k` up to a constant of each state, implicit Q
    iteration and Munchausen value iteration are soft value iteration at temperature ``(1 - alpha) tau`` with errors
    :math:`E_k`, :math:`h_{k + 1} = T h_k + E_{k + 1} + \alpha^{k + 1} (h_0 - r - \gamma P \tau' \ln A)`,
    :math:`\tau' = (1 - \alpha) \tau`.

    Source: Vieillard et al. 2021 (Implicitly regularized RL), theorem 2; Vieillard et al. 2020 (Munchausen RL).

    Args:
        errors: ``eps_1`` to ``eps_K`` ``[K, S, A]``, in reward units.
        alpha: Munchausen weight in [0, 1].

    Returns:
        ``E_1`` to ``E_K`` ``[K, S, A]``, in reward units.
    """
    if alpha == 1.0:
        return errors.cumsum(0) / torch.arange(1, len(errors) + 1).to(errors).view(-1, 1, 1)
    found = [torch.zeros_like(errors[0])]
    for error in errors:
        found.append(alpha * found[-1] + (1 - alpha) * error)
    return torch.stack(found[1:])


def policy_losses(mdp: TabularMDP, iterates: Sequence[Iterate], tau: float = 0.0) -> Tensor:
    r""":math:`\| q^* - q^{\pi_k} \|_\infty` of each iterate's policy, at temperature ``tau``, exactly.

    In reward units, ``[K + 1]`` for all iterates of K updates of values ``[S, A]``.
    """
    best = _optimal_q(mdp, tau)
    return torch.stack([(best - policy_evaluation(mdp, each.pi, tau).q).abs().max() for each in iterates])


def policy_loss_bounds(mdp: TabularMDP, errors: Tensor, tau: float, alpha: float) -> Tensor:
    r"""Upper bounds ``[K]`` of :func:`policy_losses` after 1 to K updates from ``q_0 = 0``.

    .. math::
        \alpha < 1: \quad & \frac{2 \gamma}{1 - \gamma} \Big( \sum_{j \le k} \gamma^{k - j} (\| E_j \| + \alpha^j d)
        + \gamma^k \| h_0 - q^*_{\tau'} \| \Big), \qquad \tau' = (1 - \alpha) \tau \\
        \alpha = 1: \quad & \frac{2}{1 - \gamma} \| E_k \| + \frac{4}{(1 - \gamma)^2} \frac{r_{max} + \tau \ln A}{k}

    Norms are suprema, :math:`E_k` those of :func:`averaged_errors` and :math:`d = \| h_0 - r - \gamma P \tau' \ln A
    \|`. With ``alpha < 1`` the loss is that of values regularized at ``tau'`` (``tau = 0`` is approximate value
    iteration). One error counts by its own size there, and only in an average at ``alpha = 1``.

    Source: Vieillard et al. 2020 (Munchausen RL), theorem 2, for ``alpha = 1``; the other follows from theorem 2 of
    Vieillard et al. 2021 (Implicitly regularized RL), with its constants worked out here.

    Args:
        mdp: the MDP, without terminal states.
        errors: ``eps_1`` to ``eps_K`` ``[K, S, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        alpha: Munchausen weight in [0, 1].

    Returns:
        Bounds ``[K]``, in reward units.
    """
    gamma, k = mdp.gamma, torch.arange(1, len(errors) + 1).to(mdp.r)
    size = averaged_errors(errors, alpha).abs().amax((-2, -1))
    if alpha == 1.0:
        largest = mdp.r.abs().max() + tau * math.log(mdp.num_actions)
        return 2 / (1 - gamma) * size + 4 / (1 - gamma) ** 2 * largest / k
    own = (1 - alpha) * tau
    # q_0 = 0 and a uniform policy before it: q'_0 = alpha tau ln A everywhere, and h_0 its share.
    start = torch.full_like(mdp.r, (1 - alpha) * alpha * tau * math.log(mdp.num_actions))
    first = start - mdp.backup(torch.full_like(mdp.r[:, 0], own * math.log(mdp.num_actions)))
    distance, bounds = (start - _optimal_q(mdp, own)).abs().max(), []
    for each, remaining in zip(size, alpha**k * first.abs().max(), strict=True):
        distance = gamma * distance + each + remaining
        bounds.append(2 * gamma / (1 - gamma) * distance)
    return torch.stack(bounds)


def _optimal_q(mdp: TabularMDP, tau: float) -> Tensor:
    """Optimal soft values ``[S, A]`` by policy iteration: some six solves, where value iteration takes 300 sweeps."""
    q, change = mdp.r, math.inf
    while change > 1e-11 * max(1.0, q.abs().max().item()):
        improved = policy_evaluation(mdp, soft_policy(q, tau), tau).q
        q, change = improved, (improved - q).abs().max().item()
    return q
