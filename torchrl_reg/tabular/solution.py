"""What every exact solver returns, and the loop they share.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.tabular.mdp import TabularMDP

Noise = Callable[[int], Tensor]
MAX_ITERATIONS = 100_000


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


def iterate(
    mdp: TabularMDP,
    backup: Callable[[Iterate], Tensor],
    improve: Callable[[Tensor, Iterate | None], Iterate],
    *,
    num_iterations: int | None,
    tol: float,
    q0: Tensor | None,
    return_iterates: bool,
    noise: Noise | None,
) -> Solution:
    """Repeat ``q <- backup(iterate) + noise(k)`` and ``iterate <- improve(q, iterate)``.

    Args:
        mdp: the MDP.
        backup: next action values ``[S, A]``.
        improve: iterate of new action values, given the one before (None at the start).
        num_iterations: number of updates; None repeats until convergence.
        tol: converged when no entry of q or tau_log_pi changes by more than
            ``tol * max(1, max |q|)``.
        q0: initial action values ``[S, A]``; None is zero.
        return_iterates: keep all iterates.
        noise: error ``[S, A]`` added to update k = 0, 1, ...; needs ``num_iterations``.

    Returns:
        The solution.

    Raises:
        ValueError: if ``num_iterations``, ``tol`` or ``q0`` does not fit, or noise is to converge.
        RuntimeError: if 100000 updates do not converge.
    """
    check_loop(mdp, num_iterations, tol, q0, noise)
    q = torch.zeros_like(mdp.r) if q0 is None else q0.to(mdp.r)
    current = improve(mdp.mask_q(q), None)
    iterates = [current] if return_iterates else []
    residual, done = math.inf, 0
    for k in range(MAX_ITERATIONS if num_iterations is None else num_iterations):
        q = backup(current)
        if noise is not None:
            q = mdp.mask_q(q + noise(k).to(q))
        previous, current, done = current, improve(q, current), k + 1
        residual = _change(previous, current)
        if return_iterates:
            iterates.append(current)
        if num_iterations is None and residual <= tol * max(1.0, q.abs().max().item()):
            break
    else:
        if num_iterations is None:
            raise RuntimeError(
                f"{MAX_ITERATIONS} iterations did not converge to tol={tol}: the last one changed q "
                f"or tau_log_pi by {residual}."
            )
    fields = (current.q, current.v, current.pi, current.tau_log_pi)
    return Solution(*fields, done, residual, tuple(iterates))


def check_alpha(alpha: float, num_iterations: int | None) -> None:
    """Raise a ValueError unless ``alpha`` is in [0, 1], and below 1 if the loop is to converge."""
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
    mdp: TabularMDP,
    num_iterations: int | None,
    tol: float,
    q0: Tensor | None,
    noise: Noise | None,
) -> None:
    """Raise a ValueError unless the settings of a solver's loop fit."""
    if num_iterations is not None and num_iterations < 0:
        raise ValueError(f"num_iterations must be >= 0 or None, got {num_iterations}.")
    if not tol > 0.0:
        raise ValueError(f"tol must be > 0, got {tol}.")
    if q0 is not None and q0.shape != mdp.r.shape:
        raise ValueError(f"q0 must have shape {list(mdp.r.shape)}, got {list(q0.shape)}.")
    if noise is not None and num_iterations is None:
        raise ValueError("num_iterations must be set, as noise keeps the iterates from converging, got None.")
