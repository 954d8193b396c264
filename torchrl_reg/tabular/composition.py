"""How well the average of two soft Q-functions does on the average of their rewards.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy, soft_value
from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.value_iteration import policy_evaluation, soft_value_iteration, value_iteration


@dataclass(frozen=True, eq=False)
class Composition:
    r"""The average of two optimal soft Q-functions, the optimum of the averaged reward, and the bounds between them.

    .. math:: \bar Q \ge Q^* \ge \bar Q - C, \qquad Q^{\bar\pi} \ge Q^* - D

    Args:
        mdp: the task with the averaged reward ``(r_1 + r_2) / 2``.
        q_average: ``(Q_1 + Q_2) / 2`` ``[S, A]``.
        pi_average: ``softmax(q_average / tau)`` ``[S, A]``.
        q_optimal: optimal soft values ``Q*`` of the averaged reward ``[S, A]``.
        q_executed: soft values of ``pi_average`` in that task ``[S, A]``.
        value_bound: ``C`` ``[S, A]``, in reward units.
        policy_bound: ``D`` ``[S, A]``, in reward units.
    """

    mdp: TabularMDP
    q_average: Tensor
    pi_average: Tensor
    q_optimal: Tensor
    q_executed: Tensor
    value_bound: Tensor
    policy_bound: Tensor


def soft_composition(first: TabularMDP, second: TabularMDP, tau: float) -> Composition:
    r"""Composes the soft-optimal policies of two tasks that differ in their rewards only.

    The bounds are the fixed points of ``C = gamma P (delta + max C)`` and ``D = gamma P <pi, C + D>``, where
    :math:`\delta(s) = -\tau \ln \sum_a \sqrt{\pi_1(a|s) \pi_2(a|s)}` is 0 where the two policies agree. Both are 0 for
    two equal tasks and for ``gamma = 0``, and loose otherwise. Note that the released code executes the softmax of the
    *sum*, which is the average at half the temperature.

    Source: Haarnoja et al. 2018 (Composable deep reinforcement learning for robotic manipulation), lemma 1 and theorem
    1, with the constant derived here.

    Args:
        first: one task.
        second: the other, with the same transitions, discount and terminal states.
        tau: temperature > 0, in reward units.

    Returns:
        The composition, values ``[S, A]``.

    Raises:
        ValueError: if the tasks differ in more than their rewards, or ``tau`` is not > 0.
    """
    same = first.gamma == second.gamma and torch.equal(first.terminal, second.terminal)
    if not (same and torch.equal(first.P, second.P)):
        raise ValueError("first and second must share P, gamma and terminal, got tasks that differ in them.")
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}.")
    mdp = TabularMDP(first.P, (first.r + second.r) / 2, first.gamma, first.terminal)
    one, two = (soft_value_iteration(task, tau) for task in (first, second))
    q_average = (one.q + two.q) / 2
    pi_average = soft_policy(q_average, tau)
    delta = mdp.mask_v((one.v + two.v) / 2 - soft_value(q_average, tau))
    value_bound = value_iteration(_with_reward(mdp, delta)).q
    expected = (pi_average * value_bound).sum(-1)
    policy_bound = policy_evaluation(_with_reward(mdp, expected), pi_average).q
    return Composition(
        mdp=mdp,
        q_average=q_average,
        pi_average=pi_average,
        q_optimal=soft_value_iteration(mdp, tau).q,
        q_executed=policy_evaluation(mdp, pi_average, tau).q,
        value_bound=value_bound,
        policy_bound=policy_bound,
    )


def _with_reward(mdp: TabularMDP, value: Tensor) -> TabularMDP:
    """The task whose reward is ``gamma P value``: its values are sums of discounted ``value`` of later states."""
    return TabularMDP(mdp.P, mdp.gamma * (mdp.P @ mdp.mask_v(value)), mdp.gamma, mdp.terminal)
