"""The solution that every exact solver returns, and the loop they share.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

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
