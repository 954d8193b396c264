"""Reinforcement learning as inference in tables: pseudo-likelihood, VIREL, composition of policies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.functional import bellman_temperature, policy_entropy, scaled_log_policy, soft_policy, soft_value
from torchrl_reg.tabular.dynamic_programming import (
    Iterate,
    Solution,
    check_loop,
    policy_evaluation,
    repeat,
    soft_value_iteration,
    value_iteration,
)
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
    r"""Logarithms ``[T + 1, S]`` of :math:`\alpha_t(s) = p(s_t = s, O_{0:t-1})`.

    With the backward messages, :math:`p(s_t | O) \propto \alpha_t \beta_t`:

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


_FAILURE = (
    "{done} iterations did not converge to tol={tol}: the last one changed q or tau by {residual}, "
    "at tau={current.tau}."
)


@dataclass(frozen=True, eq=False, kw_only=True)
class VIRELIterate(Iterate):
    """Action values, the Boltzmann policy at their Bellman error, and that error.

    Args:
        tau: current temperature, in reward units; 0 is the greedy policy.
        v: values ``<pi, q>`` ``[S]``, without an entropy term.

    Example:
        >>> from torchrl_reg.tabular import chain, value_iteration
        >>> best = value_iteration(chain(4, gamma=0.5))
        >>> virel_iteration(chain(4, gamma=0.5), 1.0, q0=best.q, num_iterations=0).tau
        0.0
    """

    tau: float


@dataclass(frozen=True, eq=False, kw_only=True)
class VIRELSolution(Solution, VIRELIterate):
    """The last :class:`VIRELIterate`, how it was reached and, if asked for, all of them.

    Values are ``[S, A]``, in reward units.

    Example:
        >>> from torchrl_reg.tabular import chain
        >>> virel_iteration(chain(4, gamma=0.5), 1.0).v.tolist()
        [0.25, 0.5, 1.0, 0.0]
    """


def virel_iteration(
    mdp: TabularMDP,
    beta_scale: float,
    *,
    exponent: float = 2.0,
    tau: float | None = None,
    state_distribution: Tensor | None = None,
    num_iterations: int | None = None,
    tol: float = 1e-12,
    q0: Tensor | None = None,
    return_iterates: bool = False,
) -> VIRELSolution:
    r"""Alternates :math:`\pi = softmax(q / \epsilon)` with :math:`q \leftarrow T^\pi q`.

    Here :math:`T^\pi q = r + \gamma P \langle \pi, q \rangle`, and the temperature is
    :math:`\epsilon = \frac{c}{p} E_{s, a} |T^\pi q - q|^p`.

    The policy in the error is the one before the update of the temperature (at first the greedy one); the evaluation
    has no entropy term. ``q*`` with the greedy policy is the only fixed point; elsewhere the temperature is positive,
    and with it every probability. As the values converge the temperature goes to 0 by itself, but only for a moderate
    ``c``: with ``p = 1`` and ``c = 50`` a random MDP keeps a high temperature forever, sustained by the errors that it
    causes.

    Given ``tau``, the temperature stays there; the fixed points are then those of the softmax operator, which is not a
    contraction and may have several.

    Source: Fellows et al. 2019 (VIREL), in exact form.

    Args:
        mdp: the MDP.
        beta_scale: ``c > 0``, in reward units to the power ``1 - p``.
        exponent: ``p >= 1``.
        tau: fixed temperature >= 0 in reward units instead; None is the Bellman error.
        state_distribution: weights of the states in the error ``[S]``; None is uniform over those not terminal.
        num_iterations: number of updates; None repeats until convergence.
        tol: converged when neither q nor the temperature changes by more than ``tol * max(1, max |q|)``.
        q0: initial action values ``[S, A]``; None is zero.
        return_iterates: keep all iterates.

    Returns:
        The solution; ``tau_log_pi`` belongs to its temperature.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    if tau is not None and not 0 <= tau < math.inf:
        raise ValueError(f"tau must be a finite temperature >= 0 or None, got {tau}.")
    check_loop(mdp, num_iterations, tol, q0)
    weights = mdp.start_distribution(state_distribution)
    q = mdp.mask_q(torch.zeros_like(mdp.r) if q0 is None else q0.to(mdp.r))

    def at(q: Tensor, next_value: Tensor) -> VIRELIterate:
        """The iterate of ``q``, whose error is that against ``next_value`` ``[S]``."""
        current = tau
        if current is None:
            error, each = mdp.backup(next_value) - q, weights.unsqueeze(-1).expand_as(q)
            current = bellman_temperature(error, beta_scale, exponent=exponent, weights=each).item()
        pi = soft_policy(q, current)
        v = (pi * q).sum(-1)  # 0 at terminal states, as q is
        return VIRELIterate(q=q, v=v, pi=pi, tau_log_pi=scaled_log_policy(q, current), tau=current)

    def advance(current: VIRELIterate, _: int) -> tuple[VIRELIterate, float]:
        q = mdp.backup(current.v)
        following = at(q, (current.pi * q).sum(-1))
        return following, max((q - current.q).abs().max().item(), abs(following.tau - current.tau))

    return VIRELSolution(**repeat(at(q, q.amax(-1)), advance, num_iterations, tol, return_iterates, failure=_FAILURE))


def virel_objective(q: Tensor, pi: Tensor, tau: float, state_distribution: Tensor) -> float:
    r"""The variational objective :math:`L = E_{s \sim d}[\langle \pi, q \rangle / \epsilon + H(\pi)]`.

    It equals :math:`\ln \sum_{s, a} \exp(q / \epsilon) - KL(d \pi \| p) - H(d)` with :math:`p(s, a) \propto \exp(q /
    \epsilon)`, so at given ``q`` it is largest at the Boltzmann policy, where it is :math:`E_d \ln \sum_a \exp(q(s, a)
    / \epsilon)`.

    Source: Fellows et al. 2019, the evidence lower bound.

    Args:
        q: action values ``[S, A]``, in reward units.
        pi: probabilities ``[S, A]``.
        tau: temperature > 0, in reward units.
        state_distribution: ``d`` ``[S]``.

    Returns:
        The objective, in nats.

    Raises:
        ValueError: if ``tau`` is not > 0.
    """
    if not tau > 0:
        raise ValueError(f"tau must be > 0 (the objective divides by it), got {tau}.")
    return (state_distribution * ((pi * q).sum(-1) / tau + policy_entropy(pi))).sum().item()


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
