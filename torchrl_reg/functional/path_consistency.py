"""Soft consistency along paths: residuals that vanish at the regularized optimum, one step or many at a time.

Shapes: ``*B`` batch, ``T`` time, ``R`` lengths of sub-trajectories (the rollout).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.soft import Temperature


def path_consistency(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    log_pi: Tensor,
    *,
    tau: Temperature,
    gamma: float | Tensor,
    rollout: int,
    done: Tensor,
    terminated: Tensor,
    lam: Temperature = 0.0,
    log_pi_reference: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Path-consistency residuals of every sub-trajectory of 1 to ``rollout`` steps.

    .. math:: C_{t,n} = -V(s_t) + \gamma^n V(s_{t+n}) + \sum_{i<n} \gamma^i \left(r_{t+i} - \tau \ln \pi(a_{t+i})
        - \lambda \ln \frac{\pi(a_{t+i})}{\mu(a_{t+i})}\right)

    They are 0 at the regularized optimum of a deterministic MDP, whatever the actions; where transitions are
    stochastic only their mean is. A sub-trajectory ends with its episode: the value after a terminated step is 0,
    the value after a truncated one ``next_value``.

    Source: Nachum et al. 2017 (Bridging the gap between value and policy based RL), eq. (18) with ``lam = 0``;
    Nachum et al. 2018 (Trust-PCL), eq. (14).

    Args:
        reward: ``[*B, T]``.
        value: :math:`V(s_t)` ``[*B, T]``.
        next_value: :math:`V(s_{t+1})` ``[*B, T]``, of the state each step led to (before a reset).
        log_pi: log-probabilities of the stored actions under the current policy ``[*B, T]``, in nats.
        tau: temperature >= 0, in reward units.
        gamma: discount.
        rollout: R, the largest number of steps, 1 <= R <= T.
        done: True where the episode ended with the step ``[*B, T]``, bool.
        terminated: True where it ended in a terminal state ``[*B, T]``, bool.
        lam: weight >= 0 of the KL divergence to the reference policy, in reward units.
        log_pi_reference: :math:`\ln \mu` of the stored actions ``[*B, T]``; needed with ``lam``.
        mask: steps that count ``[*B, T]``, bool; None for all. Sub-trajectories contain no other steps.

    Returns:
        Residuals ``[*B, T, R]``, where entry ``[..., t, n - 1]`` belongs to the n steps from t on, and whether that
        sub-trajectory exists ``[*B, T, R]`` (bool); the residuals of the others are 0.

    Raises:
        ValueError: ``rollout`` outside 1 ... T, shapes that differ, a number ``lam`` > 0 without ``log_pi_reference``.
    """
    length = reward.shape[-1]
    if not 1 <= rollout <= length:
        raise ValueError(f"rollout={rollout} needs sequences of at least that many steps (and 1), got {length}.")
    sequences = (reward, value, next_value, log_pi, done, terminated, log_pi_reference, mask)
    shapes = {tuple(x.shape) for x in sequences if x is not None}
    if len(shapes) > 1:
        raise ValueError(f"All sequences must have the shape of reward {tuple(reward.shape)}, got {sorted(shapes)}.")
    if log_pi_reference is None and isinstance(lam, (int, float)) and lam:
        raise ValueError(f"log_pi_reference must be given with lam={lam}, got None.")
    gain = reward - tau * log_pi
    if log_pi_reference is not None:
        gain = gain - lam * (log_pi - log_pi_reference)
    here = torch.ones_like(done) if mask is None else mask
    steps = torch.arange(rollout, device=reward.device)
    # In the data's dtype from the start: as_tensor alone would round a Python float to float32.
    discounts = torch.as_tensor(gamma, device=reward.device, dtype=reward.dtype) ** steps
    # Episodes that ended before the last step, and steps that do not count, cut the path permanently.
    ends = _windows(done, rollout, fill=True).to(torch.int64)
    exists = (ends.cumsum(-1) == ends) & (_windows(here, rollout, fill=False).cumprod(-1) > 0)
    # where, before anything is summed: steps that do not count may hold NaN.
    gains = torch.where(exists, _windows(gain, rollout), 0.0)
    final = torch.where(exists, _windows(torch.where(terminated, 0.0, next_value), rollout), 0.0)
    path = (discounts * gains).cumsum(-1) + gamma * discounts * final
    return torch.where(exists, path - value.unsqueeze(-1), 0.0), exists


def _windows(x: Tensor, size: int, fill: float | bool = 0.0) -> Tensor:
    """``[*B, T, size]``: entry ``[..., t, i]`` is ``x[..., t + i]``, or ``fill`` beyond the end."""
    padding = x.new_full((*x.shape[:-1], size - 1), fill)
    return torch.cat((x, padding), -1).unfold(-1, size, 1)
