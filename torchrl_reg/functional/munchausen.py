"""The taken action: its value, its gap to the best one, and the reward shapings made of them.

Shapes: ``*B`` batch, ``A`` actions. Half-precision inputs are computed and returned in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.soft import at_least_float32


def action_index(action: Tensor, action_space: str, batch_dims: int) -> Tensor:
    """The action (``[*B]`` or ``[*B, 1]`` categorical, ``[*B, A]`` one-hot) as an index ``[*B]``.

    ``batch_dims`` is the number of dimensions of ``*B``: it tells ``[*B, 1]`` from a batch that ends in 1.
    """
    if action_space == "one_hot":
        return action.long().argmax(-1)  # long, because argmax takes no bool
    return action.squeeze(-1) if action.ndim > batch_dims else action


def taken(values: Tensor, index: Tensor) -> Tensor:
    """Entries ``[*B]`` of ``values [*B, A]`` at the actions ``index [*B]``."""
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def munchausen_bonus(tau_log_pi_a: Tensor, alpha: float | Tensor, clip_min: float | Tensor | None) -> Tensor:
    r"""Munchausen bonus :math:`\alpha \max(\tau \ln \pi(a|s), l_0)`, at least ``alpha * clip_min``.

    The clip acts on ``tau * ln pi``, after the multiplication by ``tau``, and ``alpha`` multiplies
    what is left.

    Source: Vieillard et al. 2020 (Munchausen RL), who print :math:`[\tau \ln \pi(a|s)]_{l_0}^{0}`. The upper clip is
    not a setting but the fact that ``ln pi <= 0``: ``ln (pi / rho)`` of a prior and the logarithm of a density
    may be positive, and are not clipped there.

    Args:
        tau_log_pi_a: ``tau * ln pi`` of the taken actions ``[*B]``, in reward units.
        alpha: Munchausen weight, usually in [0, 1].
        clip_min: lower clip <= 0, in reward units; None does not clip.

    Returns:
        Bonus to add to the reward ``[*B]``, in reward units.

    Raises:
        ValueError: if ``clip_min`` is a number that is positive or NaN.
    """
    tau_log_pi_a = at_least_float32(tau_log_pi_a)
    if clip_min is None:
        clipped = tau_log_pi_a
    elif isinstance(clip_min, Tensor):
        clipped = torch.maximum(tau_log_pi_a, clip_min.to(tau_log_pi_a.dtype))
    elif clip_min <= 0.0:
        clipped = tau_log_pi_a.clamp(min=clip_min)
    else:
        raise ValueError(f"clip_min must be <= 0 or None, got {clip_min}.")
    return alpha * clipped


def action_gap(q: Tensor) -> Tensor:
    """Best minus second best action value, ``q_(1) - q_(2)``; 0 at a tie.

    Source: Farahmand 2011; Bellemare et al. 2016 (Increasing the action gap).

    Args:
        q: action values ``[*B, A]`` with ``A >= 2``, in reward units.

    Returns:
        Gaps ``[*B]``, in reward units; infinite where a single action is unmasked.

    Raises:
        ValueError: if there are fewer than two actions.
    """
    if q.shape[-1] < 2:
        raise ValueError(f"q must hold at least two actions, got shape {tuple(q.shape)}.")
    best, second = at_least_float32(q).topk(2, dim=-1).values.unbind(-1)
    return best - second


def finite_action_gap(q: Tensor) -> Tensor:
    """:func:`action_gap` of ``q [*B, A]``, ``[*B]``; 0 where a mask leaves one action."""
    gap = action_gap(q)
    return torch.where(gap < torch.finfo(gap.dtype).max / 16, gap, 0.0)


def advantage_gap(q: Tensor, action: Tensor) -> Tensor:
    r"""Advantage gap :math:`\max_{a'} q(a') - q(a) \ge 0`, which advantage learning subtracts.

    Source: Baird 1999; Bellemare et al. 2016 (Increasing the action gap). Minus ``alpha``
    times it is the limit of the Munchausen bonus at temperature 0.

    Args:
        q: action values ``[*B, A]``, in reward units.
        action: indices ``[*B]``, int64.

    Returns:
        Gaps ``[*B]``, in reward units.

    Raises:
        ValueError: if ``action`` does not have the shape of ``q`` without its last dimension.
    """
    if action.shape != q.shape[:-1]:
        raise ValueError(
            f"action must have shape {tuple(q.shape[:-1])} (q without its last dimension), got {tuple(action.shape)}."
        )
    q = at_least_float32(q)
    return q.amax(-1) - taken(q, action)


def persistent_advantage_gap(q: Tensor, next_q: Tensor, action: Tensor, terminated: Tensor) -> Tensor:
    r"""The smaller of the action's gaps at this and at the next state.

    .. math:: \min(\max_{a'} q(s, a') - q(s, a), \max_{a'} q(s', a') - q(s', a))

    A terminal next state has no values, so the first gap is used alone there.

    Source: Bellemare et al. 2016 (Increasing the action gap), persistent advantage learning, in the
    form of pfrl's PAL (the second gap is not discounted). pfrl does not mask terminal states.

    Args:
        q: action values at s ``[*B, A]``, in reward units.
        next_q: action values at s' ``[*B, A]``, in reward units.
        action: indices of the actions taken at s ``[*B]``, int64.
        terminated: True where s' is terminal ``[*B]``, bool; truncation does not count.

    Returns:
        Gaps ``[*B]``, in reward units.

    Raises:
        ValueError: if ``action`` or ``terminated`` does not have the shape of ``q`` without its
            last dimension, or ``next_q`` not that of ``q``.
    """
    if terminated.shape != action.shape or next_q.shape != q.shape:
        raise ValueError(
            f"terminated must have the shape of action {tuple(action.shape)} and next_q that of q "
            f"{tuple(q.shape)}, got {tuple(terminated.shape)} and {tuple(next_q.shape)}."
        )
    gap = advantage_gap(q, action)
    return torch.where(terminated, gap, torch.minimum(gap, advantage_gap(next_q, action)))
