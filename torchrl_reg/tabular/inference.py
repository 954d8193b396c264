r"""Control as inference: messages of the graphical model in which a reward is the log-probability of being optimal.

Shapes: ``T`` steps, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy, soft_value
from torchrl_reg.tabular.mdp import TabularMDP


@dataclass(frozen=True, eq=False)
class Messages:
    r"""A plan of ``T`` steps under a uniform prior over actions; values are in reward units.

    Args:
        q: :math:`\tau` times the logarithm of the backward message of a state and action ``[T, S, A]``.
        v: the same of a state ``[T + 1, S]``, 0 at the end.
        pi: the policy, :math:`\propto \exp(q / \tau)` ``[T, S, A]``.
        P: what the plan believes to follow an action, ``[T, S, A, S]``.
        visits: probability of each state at each step under this policy and belief ``[T + 1, S]``.
    """

    q: Tensor
    v: Tensor
    pi: Tensor
    P: Tensor
    visits: Tensor


def optimality_messages(
    mdp: TabularMDP, tau: float, num_steps: int, *, start: Tensor | None = None, believe_in_luck: bool = True
) -> Messages:
    r"""Backward messages and the posterior policy that they give.

    With :math:`p(O_t = 1 | s, a) = \exp(r / \tau)` and uniform actions a priori, :math:`\beta_t(s, a) = p(O_{t:T} | s,
    a)` and :math:`\beta_t(s) = \frac1A \sum_a \beta_t(s, a) = \exp(V_t / \tau)` follow

    .. math:: \tau \ln \beta_t(s, a) = r + \tau \ln \sum_{s'} P(s' | s, a) \exp(V_{t + 1}(s') / \tau)

    The logarithm of a mean is risk-seeking: given success the posterior also changes the transitions, to
    :math:`P(s' | s, a) \beta_{t + 1}(s')` normalized, so it gambles as if luck could be chosen. Its policy minimizes
    :math:`KL(p(\cdot | O) \| p_\pi)` over trajectories. Minimizing :math:`KL(p_\pi \| p(\cdot | O))` instead, which
    cannot change the transitions, is maximum-entropy RL, :math:`Q_t = r + E V_{t + 1}` (``believe_in_luck=False``).
    Both agree where transitions are deterministic. ``mdp.gamma`` plays no part: the horizon takes its place.

    Source: Levine 2018 (Reinforcement learning and control as probabilistic inference); Fellows et al. 2019 (VIREL).

    Args:
        mdp: the MDP; reward and value of a terminal state are 0.
        tau: temperature > 0, in reward units.
        num_steps: ``T >= 1``.
        start: probability of the first state ``[S]``; None is uniform over those not terminal.
        believe_in_luck: the posterior; False is maximum-entropy RL.

    Returns:
        The messages ``[T, S, A]``, the policy and its visits.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be a finite temperature > 0, got {tau}.")
    if num_steps < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}.")
    uniform = torch.full_like(mdp.r[0], -math.log(mdp.num_actions))
    v, found = torch.zeros_like(mdp.r[:, 0]), []
    for _ in range(num_steps):
        following = mdp.P
        if believe_in_luck:
            weight = mdp.P.log() + v / tau
            expected, following = tau * weight.logsumexp(-1), weight.softmax(-1)
        else:
            expected = mdp.P @ v
        q = mdp.mask_q(mdp.r + expected)
        found.append((q, v, soft_policy(q, tau, log_prior=uniform), following))
        v = mdp.mask_v(soft_value(q, tau, log_prior=uniform))
    q, later, pi, P = (torch.stack(each[::-1]) for each in zip(*found, strict=True))
    first = mdp.start_distribution(start)
    if believe_in_luck:
        first = (first.log() + v / tau).softmax(-1)
    return Messages(q, torch.cat((v.unsqueeze(0), later)), pi, P, state_visits(mdp, pi, P, first))


def state_visits(mdp: TabularMDP, pi: Tensor, P: Tensor, first: Tensor) -> Tensor:
    """Probability of each state at each step ``[T + 1, S]`` from ``first [S]``.

    By policies ``pi [T, S, A]`` and transitions ``P [T, S, A, S]``; a terminal state keeps what has arrived there.
    """
    found = [first]
    for policy, belief in zip(pi, P, strict=True):
        moved = torch.einsum("s,sa,sat->t", found[-1].masked_fill(mdp.terminal, 0.0), policy, belief)
        found.append(moved + found[-1].masked_fill(~mdp.terminal, 0.0))
    return torch.stack(found)


def forward_messages(mdp: TabularMDP, tau: float, num_steps: int, *, start: Tensor | None = None) -> Tensor:
    r"""Logarithms ``[T + 1, S]`` of :math:`\alpha_t(s) = p(s_t = s, O_{0:t-1})`, so that :math:`p(s_t | O) \propto
    \alpha_t \beta_t`:

    .. math:: \alpha_{t + 1}(s') = \sum_{s, a} \alpha_t(s) \tfrac1A \exp(r / \tau) P(s' | s, a)

    A terminal state keeps what has arrived there. Probabilities, so without a unit; arguments, with the first
    states' ``start [S]``, are those of :func:`optimality_messages`.

    Source: Levine 2018 (Reinforcement learning and control as probabilistic inference).
    """
    step = (mdp.r / tau - math.log(mdp.num_actions)).unsqueeze(-1) + mdp.P.log()
    found = [mdp.start_distribution(start).log()]
    for _ in range(num_steps):
        free = found[-1].masked_fill(mdp.terminal, -math.inf)
        moved = (free.view(-1, 1, 1) + step).logsumexp((0, 1))
        found.append(torch.logaddexp(moved, found[-1].masked_fill(~mdp.terminal, -math.inf)))
    return torch.stack(found)
