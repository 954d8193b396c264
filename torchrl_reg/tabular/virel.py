"""VIREL solved in tables: a Boltzmann policy whose temperature is the Bellman error of its Q-function.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.functional import bellman_temperature, policy_entropy, scaled_log_policy, soft_policy
from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.solution import Iterate, Solution, check_loop, repeat

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
    r"""Alternates :math:`\pi = softmax(q / \epsilon)` with :math:`q \leftarrow T^\pi q = r + \gamma P \langle \pi, q
    \rangle`, at the temperature :math:`\epsilon = \frac{c}{p} E_{s, a} |T^\pi q - q|^p`.

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
