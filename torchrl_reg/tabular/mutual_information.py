r"""Mutual-information regularization solved exactly: the soft fixed point under the best action prior.

Shapes: ``S`` states, ``A`` actions. ``beta`` is an inverse temperature, in 1 / reward units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy, soft_value, soft_value_and_log_policy
from torchrl_reg.tabular.dynamic_programming import Iterate, Solution, check_loop, check_prior, expected_return, repeat
from torchrl_reg.tabular.mdp import TabularMDP

Occupancy = Literal["stationary", "discounted"]
_FAILURE = "{done} prior updates did not converge to tol={tol}: the KKT gap is {residual}."


@dataclass(frozen=True, eq=False, kw_only=True)
class PriorIterate(Iterate):
    r"""An action prior with the soft fixed point under it.

    Args:
        prior: probabilities ``rho`` ``[A]``.
        occupancy: probability ``mu`` of visiting each state under ``pi`` ``[S]``, 0 at terminal states.
        kkt: :math:`k(a) = \sum_s \mu(s) \exp(\beta (q(s, a) - v(s)))` ``[A]``; the marginal of the policy is
            ``rho * k``, so a prior reproduces itself where ``k = 1``, and gains by growing where ``k > 1``.
        objective: value of the start distribution, in reward units.

    Example:
        >>> best = blahut_arimoto(torch.eye(2), torch.ones(2) / 2, beta=1.0)
        >>> best.prior.tolist(), best.kkt.tolist()
        ([0.5, 0.5], [1.0, 1.0])
    """

    prior: Tensor
    occupancy: Tensor
    kkt: Tensor
    objective: float

    @property
    def gap(self) -> float:
        """KKT gap ``max_a k(a) - 1 >= 0``; the one-step objective is within ``ln(1 + gap) / beta`` of its maximum."""
        return self.kkt.max().item() - 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class PriorSolution(Solution, PriorIterate):
    """The last :class:`PriorIterate` (``prior [A]``, ``q [S, A]``), how it was reached and, if asked for, all of them.

    Args:
        iterations: number of prior updates.
        residual: the KKT gap, see :attr:`PriorIterate.gap`.
        iterates: iterates 0 to ``iterations``, each a :class:`PriorIterate`; empty unless ``return_iterates``.

    Example:
        >>> from torchrl_reg.tabular import gridworld
        >>> corridor = mutual_information_iteration(gridworld(["....G"], 0.9), beta=1.0)
        >>> corridor.prior.argmax().item()  # right
        1
    """


def mutual_information_iteration(
    mdp: TabularMDP,
    beta: float,
    *,
    occupancy: Occupancy = "stationary",
    start: Tensor | None = None,
    prior0: Tensor | None = None,
    num_iterations: int | None = None,
    tol: float = 1e-12,
    accelerate: bool = True,
    return_iterates: bool = False,
) -> PriorSolution:
    r"""Alternates the soft fixed point for a prior with the prior of its policy.

    .. math::
        v(s) = \frac{1}{\beta} \ln \sum_a \rho(a) e^{\beta q(s,a)}, \qquad \rho(a) = \sum_s \mu(s) \pi(a|s)

    ``mu`` is either the *stationary* distribution of the policy, as in the paper, whose agent updates its prior in
    the states it visits; or the *discounted* occupancy :math:`\sum_t \gamma^t \nu_t(s)`, normalized. Only the
    discounted form maximizes something: :math:`\nu_0 \cdot v`, which no update lowers. The two priors differ, and
    agree as gamma tends to 1. An episode that ends starts again from ``start``.

    The soft fixed point is solved to rounding error for every prior (Newton's method, which here is soft policy
    iteration). The prior stops changing when its KKT gap is at most ``tol``. Where an optimal prior is 0, the
    probability only tends to it: by a factor ``k(a) < 1`` an update, and like 1 / n where ``k(a) = 1``. ``accelerate``
    therefore multiplies by a power of ``k`` that grows as long as the gap falls (and, in the discounted form, the
    objective does not); a failed step is replaced by a plain one.

    Source: Grau-Moya et al. 2019 (MIRL); accelerated steps: Matz and Duhamel 2004.

    Args:
        mdp: the MDP.
        beta: inverse temperature > 0, in 1 / reward units.
        occupancy: ``"stationary"`` or ``"discounted"``.
        start: probability of each first state ``[S]``; None is uniform over the states that are not terminal.
        prior0: positive probabilities ``[A]`` to start from; None is uniform.
        num_iterations: number of prior updates; None repeats until convergence.
        tol: largest KKT gap of a converged prior.
        accelerate: False is the plain alternation.
        return_iterates: keep all iterates.

    Returns:
        The solution.

    Raises:
        ValueError: if ``beta``, ``occupancy``, ``start``, ``prior0``, ``num_iterations`` or ``tol`` does not fit, or
            the stationary distribution is not unique.
        RuntimeError: if 100000 updates do not converge.
    """
    if not 0.0 < beta < math.inf:
        raise ValueError(f"beta must be a finite inverse temperature > 0, got {beta}.")
    check_loop(mdp, num_iterations, tol)
    first = mdp.start_distribution(start)
    prior = torch.full((mdp.num_actions,), 1 / mdp.num_actions).to(mdp.r)
    if prior0 is not None:
        prior = check_prior("prior0", prior0, mdp).clone()
        if not (prior > 0).all():
            raise ValueError(f"prior0 must be positive, because no update revives an action, got {prior.tolist()}.")
    solver = _Alternation(mdp, 1.0 / beta, occupancy, first)
    power = 1.0 if accelerate else 0.0

    def advance(current: PriorIterate, _: int) -> tuple[PriorIterate, float]:
        nonlocal power
        following, power = solver.improve(current, power)
        return following, following.gap

    initial = solver.iterate(prior, torch.zeros_like(mdp.r))
    fields = repeat(
        initial, advance, num_iterations, tol, return_iterates, residual=initial.gap, relative=False, failure=_FAILURE
    )
    return PriorSolution(**fields)


def blahut_arimoto(
    r: Tensor,
    p: Tensor,
    beta: float,
    *,
    prior0: Tensor | None = None,
    num_iterations: int | None = None,
    tol: float = 1e-12,
    accelerate: bool = True,
    return_iterates: bool = False,
) -> PriorSolution:
    r"""Maximizes :math:`E[r] - \frac{1}{\beta} I(S; A)` over policies: the rate-distortion problem.

    It alternates :math:`\pi(a|s) \propto \rho(a) e^{\beta r(s,a)}` and :math:`\rho(a) = \sum_s p(s) \pi(a|s)`, which
    never lowers the objective :math:`\frac{1}{\beta} \sum_s p(s) \ln \sum_a \rho(a) e^{\beta r(s,a)}`. This is
    :func:`mutual_information_iteration` of an MDP of one step; there is one maximum, and it is found.

    Source: Blahut 1972, Arimoto 1972.

    Args:
        r: reward of an action ``[S, A]``.
        p: probability of each state ``[S]``.
        beta: inverse temperature > 0, in 1 / reward units.
        prior0: as in :func:`mutual_information_iteration`, like all that follows.
        num_iterations, tol, accelerate, return_iterates: likewise.

    Returns:
        The solution, with ``q = r``; ``objective`` is the maximum.

    Raises:
        ValueError: as :func:`mutual_information_iteration`, or if ``r`` has no shape ``[S, A]``.
        RuntimeError: if 100000 updates do not converge.
    """
    if r.ndim != 2 or 0 in r.shape:
        raise ValueError(f"r must have shape [S, A], got {list(r.shape)}.")
    stay = torch.eye(len(r)).unsqueeze(1).expand(-1, r.shape[1], -1)
    return mutual_information_iteration(
        TabularMDP(stay, r, 0.0),
        beta,
        occupancy="discounted",
        start=p,
        prior0=prior0,
        num_iterations=num_iterations,
        tol=tol,
        accelerate=accelerate,
        return_iterates=return_iterates,
    )


def mutual_information(pi: Tensor, occupancy: Tensor) -> Tensor:
    r"""Mutual information :math:`I(S; A) = \sum_s \mu(s) KL(\pi(\cdot|s) \| \rho)`.

    Here :math:`\rho = \sum_s \mu(s) \pi(\cdot|s)`.

    Source: the definition.

    Args:
        pi: probabilities ``[*B, S, A]``.
        occupancy: probability ``mu`` of each state ``[*B, S]``.

    Returns:
        Information ``[*B]``, in nats.
    """
    joint = occupancy.unsqueeze(-1) * pi
    marginal_entropy = torch.special.entr(joint.sum(-2)).sum(-1)
    information: Tensor = marginal_entropy - (occupancy * torch.special.entr(pi).sum(-1)).sum(-1)
    return information


def state_occupancy(
    mdp: TabularMDP, pi: Tensor, *, occupancy: Occupancy = "stationary", start: Tensor | None = None
) -> Tensor:
    r"""Probability of each state under a policy: stationary, or :math:`(1 - \gamma) \sum_t \gamma^t \nu_t(s)`.

    An episode that ends starts again from ``start``. Terminal states, where no action is taken, have probability 0.

    Source: the definitions, solved as linear systems.

    Args:
        mdp: the MDP.
        pi: probabilities ``[S, A]``.
        occupancy: ``"stationary"`` or ``"discounted"``.
        start: probability of each first state ``[S]``; None is uniform over the states that are not terminal.

    Returns:
        Probabilities ``[S]``.

    Raises:
        ValueError: if ``start`` does not fit, or the stationary distribution is not unique.
    """
    if occupancy not in ("stationary", "discounted"):
        raise ValueError(f"occupancy must be 'stationary' or 'discounted', got {occupancy!r}.")
    first = mdp.start_distribution(start)
    living = (~mdp.terminal).to(pi)
    transition = torch.einsum("sa,sat->st", pi, mdp.P) * living * living.unsqueeze(-1)
    identity = torch.eye(mdp.num_states).to(pi)
    if occupancy == "discounted":
        visits: Tensor = torch.linalg.solve((identity - mdp.gamma * transition).T, first)
        return visits / visits.sum()
    restarting = transition + (1 - transition.sum(-1, keepdim=True)) * first
    # mu (P - 1) = 0, whose equations add up to 0: one of them is replaced by sum mu = 1.
    system = (restarting - identity).T
    system[-1] = 1.0
    try:
        visits = torch.linalg.solve(system, identity[-1])
    except torch.linalg.LinAlgError:
        visits = torch.full_like(first, math.nan)
    if not (visits.min() > -1e-8 and visits.max() < 1 + 1e-8):
        raise ValueError(
            "mdp must have one stationary distribution under pi, got several: where it ends depends on chance."
        )
    return visits.clamp(min=0.0)


@dataclass(frozen=True)
class _Alternation:
    """The steps of the iteration for one MDP, temperature ``tau = 1 / beta``, occupancy and start distribution."""

    mdp: TabularMDP
    tau: float
    occupancy: Occupancy
    start: Tensor

    def improve(self, current: PriorIterate, power: float) -> tuple[PriorIterate, float]:
        """The next iterate, its prior ``rho * k ** power``, and the power to try after it; 0 stays with plain steps."""
        if power > 1.0:
            ahead = self.iterate(_times_power(current, power), current.q)
            slack = 1e-13 * max(1.0, abs(current.objective))
            rises = self.occupancy == "stationary" or ahead.objective >= current.objective - slack
            if ahead.gap < current.gap and rises:
                return ahead, 1.5 * power
        return self.iterate(_times_power(current, 1.0), current.q), 1.5 if power else 0.0

    def iterate(self, prior: Tensor, q: Tensor) -> PriorIterate:
        """The soft fixed point under ``prior``, found from ``q``."""
        log_prior = prior.log()
        q = self._fixed_point(log_prior, q)
        v, tau_log_pi = soft_value_and_log_policy(q, self.tau, log_prior=log_prior)
        v, pi = self.mdp.mask_v(v), soft_policy(q, self.tau, log_prior=log_prior)
        mu = state_occupancy(self.mdp, pi, occupancy=self.occupancy, start=self.start)
        # The definition where the prior is 0; elsewhere the marginal over the prior, which rounds better.
        advantage = torch.where(mu.unsqueeze(-1) > 0, q - v.unsqueeze(-1), -math.inf)
        kkt = torch.where(prior > 0, (mu @ pi) / prior, mu @ (advantage / self.tau).clamp(max=700.0).exp())
        objective = (self.start @ v).item()
        return PriorIterate(
            q=q, v=v, pi=pi, tau_log_pi=tau_log_pi, prior=prior, occupancy=mu, kkt=kkt, objective=objective
        )

    def _fixed_point(self, log_prior: Tensor, q: Tensor) -> Tensor:
        """``q = r + gamma P v`` with its own soft value ``v``: Newton's method, each step an exact evaluation."""
        mdp = self.mdp
        for _ in range(100):
            pi = soft_policy(q, self.tau, log_prior=log_prior)
            # v_pi = <pi, r> - tau KL(pi || rho) + gamma P_pi v_pi, and F(q) = <pi, q> - tau KL(pi || rho).
            reward = mdp.mask_v(soft_value(q, self.tau, log_prior=log_prior) + (pi * (mdp.r - q)).sum(-1))
            previous, q = q, mdp.backup(expected_return(mdp, pi, reward))
            if (q - previous).abs().max() <= 1e-15 / (1 - mdp.gamma) * max(1.0, q.abs().max().item()):
                break
        return q


def _times_power(current: PriorIterate, power: float) -> Tensor:
    """Prior proportional to ``rho * k ** power``; with power 1 it is the marginal of the policy."""
    weight = current.prior * current.kkt**power
    return weight / weight.sum()
