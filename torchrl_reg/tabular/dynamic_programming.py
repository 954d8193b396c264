"""Exact regularized dynamic programming: value iteration by regularizer, Munchausen, mirror descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor

from torchrl_reg.functional import (
    kl_divergence,
    munchausen_bonus,
    policy_entropy,
    scaled_log_policy,
    soft_policy,
    soft_value,
)
from torchrl_reg.tabular.mdp import TabularMDP

Noise = Callable[[int], Tensor]
MAX_ITERATIONS = 100_000
_FAILURE = "{done} iterations did not converge to tol={tol}: the last one changed q or tau_log_pi by {residual}."
AnyIterate = TypeVar("AnyIterate", bound="Iterate")


@dataclass(frozen=True, eq=False)
class Iterate:
    """Action values with the policy that is regularized-greedy to them and the value of both.

    Args:
        q: action values ``[S, A]``, in reward units.
        v: values ``[S]``, 0 at terminal states.
        pi: probabilities ``[S, A]``.
        tau_log_pi: ``ln pi`` times the temperature of the greedy step ``[S, A]``; at temperature 0
            it is ``q`` minus its maximum.

    Example:
        >>> one = torch.ones(1, 1)
        >>> Iterate(q=one, v=one[0], pi=one, tau_log_pi=0 * one).v
        tensor([1.])
    """

    q: Tensor
    v: Tensor
    pi: Tensor
    tau_log_pi: Tensor


@dataclass(frozen=True, eq=False)
class Solution(Iterate):
    """The last iterate, how it was reached and, if asked for, all of them.

    Args:
        q: values ``[S, A]``, as in :class:`Iterate`, like ``v``, ``pi`` and ``tau_log_pi``.
        iterations: number K of Bellman updates done; 0 for a direct solve.
        residual: largest change of ``q`` and ``tau_log_pi`` in the last one.
        iterates: iterates 0 to K; empty unless ``return_iterates``.

    Example:
        >>> from torchrl_reg.tabular import chain, value_iteration
        >>> value_iteration(chain(4, gamma=0.5)).v.tolist()
        [0.25, 0.5, 1.0, 0.0]
    """

    iterations: int
    residual: float
    iterates: tuple[Iterate, ...] = ()


class Loop(TypedDict, total=False):
    """Settings that the solvers share.

    Args:
        num_iterations: number of updates; None (the default) repeats until convergence.
        tol: converged when no entry of q or tau_log_pi changes by more than ``tol * max(1, max |q|)``; default 1e-12.
        q0: initial action values ``[S, A]``; None is zero.
        return_iterates: keep all iterates.
        noise: error ``[S, A]`` added to update k = 0, 1, ...; needs ``num_iterations``.
    """

    num_iterations: int | None
    tol: float
    q0: Tensor | None
    return_iterates: bool
    noise: Noise | None


def iterate(
    mdp: TabularMDP,
    backup: Callable[[Iterate], Tensor],
    improve: Callable[[Tensor, Iterate | None], Iterate],
    *,
    num_iterations: int | None = None,
    tol: float = 1e-12,
    q0: Tensor | None = None,
    return_iterates: bool = False,
    noise: Noise | None = None,
) -> Solution:
    """Repeats ``q <- backup(iterate) + noise(k)`` and ``iterate <- improve(q, iterate)``.

    Args:
        mdp: the MDP.
        backup: next action values ``[S, A]``.
        improve: iterate of new action values, given the one before (None at the start).
        num_iterations, tol, q0, return_iterates, noise: see :class:`Loop`.

    Returns:
        The solution.

    Raises:
        ValueError: if ``num_iterations``, ``tol`` or ``q0`` does not fit, or noise is to converge.
        RuntimeError: if 100000 updates do not converge.
    """
    check_loop(mdp, num_iterations, tol, q0, noise)

    def advance(current: Iterate, k: int) -> tuple[Iterate, float]:
        q = backup(current)
        if noise is not None:
            q = mdp.mask_q(q + noise(k).to(q))
        following = improve(q, current)
        return following, _change(current, following)

    first = improve(mdp.mask_q(torch.zeros_like(mdp.r) if q0 is None else q0.to(mdp.r)), None)
    return Solution(**repeat(first, advance, num_iterations, tol, return_iterates))


def repeat(
    first: AnyIterate,
    advance: Callable[[AnyIterate, int], tuple[AnyIterate, float]],
    num_iterations: int | None,
    tol: float,
    return_iterates: bool,
    *,
    residual: float = math.inf,
    relative: bool = True,
    failure: str = _FAILURE,
) -> dict[str, Any]:
    """Repeats ``advance`` ``num_iterations`` times or, if None, until its residual is small.

    Args:
        first: where to start.
        advance: the next iterate and its residual, given the last one and how often it was called.
        num_iterations: number of calls.
        tol: largest residual at convergence.
        return_iterates: keep all iterates.
        residual: that of ``first``.
        relative: ``tol`` is relative to ``max(1, max |q|)``.
        failure: message if 100000 calls do not converge.

    Returns:
        The fields of the last iterate, ``iterations``, ``residual`` and ``iterates``, for a solution.
    """
    current, done, iterates = first, 0, [first]
    while num_iterations is None or done < num_iterations:
        if num_iterations is None:
            if residual <= tol * (max(1.0, current.q.abs().max().item()) if relative else 1.0):
                break
            if done == MAX_ITERATIONS:
                raise RuntimeError(failure.format(done=done, tol=tol, residual=residual, current=current))
        current, residual = advance(current, done)
        done += 1
        if return_iterates:
            iterates.append(current)
    kept = tuple(iterates) if return_iterates else ()
    return {**vars(current), "iterations": done, "residual": residual, "iterates": kept}


def check_alpha(alpha: float, num_iterations: int | None) -> None:
    """Raises a ValueError unless ``alpha`` is in [0, 1], and below 1 if the loop is to converge."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}.")
    if alpha == 1.0 and num_iterations is None:
        raise ValueError(
            "num_iterations must be set, as alpha=1 has no fixed point (action gaps grow without bound), got None."
        )


def check_prior(name: str, prior: Tensor, mdp: TabularMDP) -> Tensor:
    """``prior`` ``[A]`` in float64, or a ValueError that calls it ``name`` unless it is a distribution (to 1e-6)."""
    prior = torch.as_tensor(prior).detach().to(mdp.r)
    if prior.shape != mdp.r.shape[1:]:
        raise ValueError(f"{name} must have shape [A] = {list(mdp.r.shape[1:])}, got {list(prior.shape)}.")
    if not (prior >= 0).all():
        raise ValueError(f"{name} must not be negative, got {prior.tolist()}.")
    if not abs(prior.sum().item() - 1) <= 1e-6:
        raise ValueError(f"{name} must sum to 1, got {prior.sum().item()}.")
    return prior / prior.sum()


def _change(previous: Iterate, current: Iterate) -> float:
    """Largest change in reward units; q alone is blind to small changes of a near-optimal policy."""
    pairs = ((previous.q, current.q), (previous.tau_log_pi, current.tau_log_pi))
    # An action that a prior excludes has tau_log_pi = -inf before and after.
    return max(torch.where(new == old, 0.0, new - old).abs().max().item() for old, new in pairs)


def check_loop(
    mdp: TabularMDP, num_iterations: int | None, tol: float, q0: Tensor | None = None, noise: Noise | None = None
) -> None:
    """Raises a ValueError unless the settings of a solver's loop fit."""
    if num_iterations is not None and num_iterations < 0:
        raise ValueError(f"num_iterations must be >= 0 or None, got {num_iterations}.")
    if not tol > 0.0:
        raise ValueError(f"tol must be > 0, got {tol}.")
    if q0 is not None and q0.shape != mdp.r.shape:
        raise ValueError(f"q0 must have shape {list(mdp.r.shape)}, got {list(q0.shape)}.")
    if noise is not None and num_iterations is None:
        raise ValueError("num_iterations must be set, as noise keeps the iterates from converging, got None.")


def value_iteration(mdp: TabularMDP, **loop: Unpack[Loop]) -> Solution:
    r"""Value iteration :math:`q \leftarrow r + \gamma P \max q`.

    Source: Bellman 1957.

    Args:
        mdp: the MDP.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

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
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

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
    value: Tensor = torch.linalg.solve(torch.eye(mdp.num_states).to(pi) - mdp.gamma * transition, reward)
    return value


def soft_iterate(mdp: TabularMDP, q: Tensor, tau: float, log_prior: Tensor | None = None) -> Iterate:
    """Iterate of ``q`` under the policy ``softmax(log_prior + q / tau)`` and its soft value."""
    return Iterate(
        q=q,
        v=mdp.mask_v(soft_value(q, tau, log_prior=log_prior)),
        pi=soft_policy(q, tau, log_prior=log_prior),
        tau_log_pi=scaled_log_policy(q, tau, log_prior=log_prior),
    )


_HALVINGS = 60  # past the last bit of float64


def tsallis_value_iteration(mdp: TabularMDP, tau: float, *, index: float = 2.0, **loop: Unpack[Loop]) -> Solution:
    r"""Value iteration :math:`q \leftarrow r + \gamma P \max_\pi (\langle \pi, q \rangle - \Omega(\pi))`.

    :math:`\Omega(\pi) = \tau (\sum_a \pi(a)^{index} - 1) / (index (index - 1))`; ``index=2`` is the sparse MDP, whose
    policy is the sparsemax of ``q / tau``. A contraction with modulus ``gamma``, with ``0 <= v_tau - v* <= tau
    (1 - A^(1 - index)) / (index (index - 1) (1 - gamma))``. The threshold of each policy is found by bisection at
    any index: an oracle for the closed form of :class:`~torchrl_reg.regularizers.Tsallis`.

    Source: Lee, Choi, Oh, "Sparse Markov Decision Processes with Causal Sparse Tsallis Entropy Regularization", RA-L
    2018 (index 2); Martins and Astudillo, ICML 2016.

    Args:
        mdp: the MDP.
        tau: temperature > 0, in reward units.
        index: entropic index > 1.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

    Returns:
        The solution; ``tau_log_pi [S, A]`` is the deformed logarithm, finite, with ``<pi, tau_log_pi> = Omega``.

    Raises:
        ValueError: if ``tau`` is not > 0, ``index`` not > 1, or another argument does not fit.
        RuntimeError: if 100000 updates do not converge.

    >>> from torchrl_reg.tabular import random_mdp
    >>> solution = tsallis_value_iteration(random_mdp(5, 4, 0.9, seed=0), 0.05)
    >>> bool((solution.pi == 0).any())
    True
    """
    if not 0.0 < tau < math.inf:
        raise ValueError(f"tau must be a finite temperature > 0, got {tau!r}.")
    if not 1.0 < index < math.inf:
        raise ValueError(f"index must be a finite number > 1, got {index!r}.")
    return iterate(
        mdp, lambda current: mdp.backup(current.v), lambda q, _: _tsallis_iterate(mdp, q, tau, index), **loop
    )


def _tsallis_iterate(mdp: TabularMDP, q: Tensor, tau: float, index: float) -> Iterate:
    pi = _policy(q / tau, index)
    omega = tau * (pi.pow(index).sum(-1) - 1) / (index * (index - 1))
    gradient = tau * pi.pow(index - 1) / (index - 1)
    tau_log_pi = gradient - (pi * gradient).sum(-1, keepdim=True) + omega.unsqueeze(-1)
    return Iterate(q=q, v=mdp.mask_v((pi * q).sum(-1) - omega), pi=pi, tau_log_pi=tau_log_pi)


def _policy(x: Tensor, index: float) -> Tensor:
    """``[(index - 1) (x - c)]_+^{1 / (index - 1)}`` ``[S, A]`` with the ``c [S, 1]`` at which it sums to 1."""
    height = (index - 1) * (x - x.amax(-1, keepdim=True))
    low = torch.full_like(height[..., :1], -1.0)  # the best action alone has probability 1
    high = torch.zeros_like(low)  # none has any
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _powered(height - middle, index).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    pi = _powered(height - (low + high) / 2, index)
    return pi / pi.sum(-1, keepdim=True)


def _powered(height: Tensor, index: float) -> Tensor:
    return height.clamp(min=0).pow(1 / (index - 1))


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
    alpha)`` is not that of this operator. With a clip this no longer holds: a gap widens by no more than
    ``alpha * |clip_min|``.

    Source: Vieillard et al. 2020 (Munchausen RL).

    Args:
        mdp: the MDP.
        tau: temperature >= 0, in reward units; 0 is advantage learning.
        alpha: Munchausen weight in [0, 1]; 1 needs ``num_iterations``.
        clip_min: lower clip <= 0 of ``tau * ln pi``, in reward units; None does not clip.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

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
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

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
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

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


def mirror_descent_value_iteration(mdp: TabularMDP, lam: float, tau: float, **loop: Unpack[Loop]) -> Solution:
    r"""Mirror-descent value iteration, from a uniform :math:`\pi_0`:

    .. math::
        \pi_{k+1} &= \arg\max_\pi \langle \pi, q_k \rangle - \lambda KL(\pi \| \pi_k) + \tau H(\pi)
        \propto \pi_k^{\lambda / (\lambda + \tau)} \exp(q_k / (\lambda + \tau)) \\
        q_{k+1} &= r + \gamma P (\langle \pi_{k+1}, q_k \rangle - \lambda KL(\pi_{k+1} \| \pi_k)
        + \tau H(\pi_{k+1}))

    Its fixed point is that of soft value iteration at temperature ``tau``.

    Source: Vieillard et al. 2020 (Leverage the average).

    Args:
        mdp: the MDP.
        lam: weight >= 0 of the KL term, in reward units.
        tau: temperature >= 0 of the entropy term, in reward units; 0 needs ``num_iterations``,
            unless ``lam`` is 0 too.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

    Returns:
        The solution, values ``[S, A]``; ``tau_log_pi`` is ``(lam + tau) * ln pi``.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    for name, weight in (("lam", lam), ("tau", tau)):
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {weight}.")
    if lam > 0.0 and tau == 0.0 and loop.get("num_iterations") is None:
        raise ValueError(
            "num_iterations must be set, as tau=0 has no fixed point (ln pi falls without bound), got None."
        )
    temperature = lam + tau
    uniform = torch.full_like(mdp.r, -temperature * math.log(mdp.num_actions))

    def improve(q: Tensor, previous: Iterate | None) -> Iterate:
        # (lam + tau) ln pi_k, scaled so that the hard limit lam = tau = 0 needs no branch.
        scaled_previous = uniform if previous is None else previous.tau_log_pi
        share = lam / temperature if temperature > 0 else 0.0
        score = q + share * scaled_previous
        pi = soft_policy(score, temperature)
        tau_log_pi = scaled_log_policy(score, temperature)
        v = (pi * q).sum(-1) + tau * policy_entropy(pi)
        if lam > 0:
            v = v - lam * kl_divergence(tau_log_pi / temperature, scaled_previous / temperature)
        return Iterate(q, mdp.mask_v(v), pi, tau_log_pi)

    return iterate(mdp, lambda it: mdp.backup(it.v), improve, **loop)
