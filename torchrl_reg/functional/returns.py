"""Lambda-returns and path consistency of sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.soft import Temperature, promoted


def lambda_return(
    reward: Tensor,
    next_value: Tensor,
    ends: Tensor,
    *,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    action_cost: Tensor | None = None,
) -> Tensor:
    r"""``G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - c_{t+1}))``.

    Where the sequence ends it is ``r_t + gamma V(s_{t+1})``.
    ``lambda = 0`` is the one-step return, ``lambda = 1`` the sum up to the end. All in reward units.

    Source: Sutton 1988 (TD(lambda)); Nachum et al. 2017 (PCL) for the cost of the stored actions.

    Args:
        reward: ``r_t [*B, T, 1]``, any bonus included.
        next_value: ``V(s_{t+1}) [*B, T, M]``, 0 at terminal states.
        ends: where the next step is not of the same sequence ``[*B, T, 1]``; the last step always ends it.
        gamma, lmbda: discount and trace parameter in [0, 1].
        action_cost: ``c_t [*B, T, 1]``, the stored action's share of the regularizer; None is 0.

    Returns:
        The returns ``[*B, T, M]``.

    >>> r, v = torch.ones(2, 1), torch.tensor([[2.0], [4.0]])
    >>> lambda_return(r, v, torch.zeros(2, 1, dtype=torch.bool), gamma=0.5, lmbda=1.0).flatten().tolist()
    [2.5, 3.0]
    """
    reward, next_value = promoted(reward, next_value)
    returns: list[Tensor] = []
    later = next_value[..., -1, :]
    for t in reversed(range(reward.shape[-2])):
        value = next_value[..., t, :]
        # A selection, not a product: what lies behind an end may be NaN.
        tail = torch.where(ends[..., t, :], value, value + lmbda * (later - value))
        returns.append(reward[..., t, :] + gamma * tail)
        later = returns[-1] if action_cost is None else returns[-1] - action_cost[..., t, :]
    return torch.stack(returns[::-1], -2)


def q_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    correction: Tensor,
    ends: Tensor,
    *,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> Tensor:
    r"""``G_t = r_t + gamma (V(s_{t+1}) + lambda (G_{t+1} - V(s_{t+1}) - c_{t+1}))``.

    Where the sequence ends it is ``r_t + gamma V(s_{t+1})``.
    With ``c_t = q(s_t, a_t) - V(s_t)`` this is Q(lambda) with off-policy correction, whose fixed point is the optimal
    one for any behaviour policy: for the soft value ``c_t = tau ln pi(a_t|s_t)``, for the maximum ``c_t`` is minus the
    advantage gap, its limit ``tau -> 0``. With ``c = 0`` and the maximum it is Peng's Q(lambda), which is biased
    low by actions that are not greedy. It is :func:`lambda_return` in few operations a step, for data without padding.
    All in reward units.

    Source: Harutyunyan et al. 2016 (Q(lambda) with off-policy corrections), Peng and Williams 1996; Gallici et al. 2024
    (PQN) for the use without replay.

    Args:
        reward: ``r_t [*B, T]``, any bonus included.
        next_value: ``V(s_{t+1}) [*B, T]``, 0 at terminal states.
        correction: ``c_t [*B, T]``.
        ends: where the next step is not of the same episode ``[*B, T]``; the last step always ends.
        gamma, lmbda: discount and trace parameter in [0, 1].

    Returns:
        The returns ``[*B, T]``.

    >>> r, v = torch.ones(2), torch.tensor([2.0, 4.0])
    >>> q_lambda_return(r, v, torch.tensor([0.0, -1.0]), torch.tensor([False, True]), gamma=0.5, lmbda=0.5).tolist()
    [2.5, 3.0]
    """
    reward, next_value, correction = promoted(reward, next_value, correction)
    one_step = reward + gamma * next_value
    # What a later return adds: gamma lambda (G_{t+1} - V(s_{t+1}) - c_{t+1}).
    # Selections, not products with 0: what lies behind an end may be NaN.
    factor = torch.as_tensor(gamma * lmbda, dtype=reward.dtype, device=reward.device)
    last, shift = ends[..., :-1], factor * (next_value[..., :-1] + correction[..., 1:])
    constants = torch.where(last, one_step[..., :-1], one_step[..., :-1] - shift)
    returns = [one_step[..., -1]]
    # Time comes first where it is cut and joined: along the last dimension that takes as long as the arithmetic.
    constants, last = constants.movedim(-1, 0).contiguous(), last.movedim(-1, 0).contiguous()
    for constant, end in zip(reversed(constants.unbind()), reversed(last.unbind()), strict=True):
        returns.append(torch.where(end, constant, torch.addcmul(constant, factor, returns[-1])))
    return torch.stack(returns[::-1]).movedim(0, -1).contiguous()


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

    They are 0 at the regularized optimum of a deterministic MDP, for any actions; where transitions are
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
    reward, value, next_value, log_pi = promoted(reward, value, next_value, log_pi)
    gain = reward - tau * log_pi
    if log_pi_reference is not None:
        gain = gain - lam * (log_pi - log_pi_reference)
    here = torch.ones_like(done) if mask is None else mask
    steps = torch.arange(rollout, device=reward.device)
    # In the data's dtype from the start: as_tensor alone would round a Python float to float32.
    discounts = torch.as_tensor(gamma, device=reward.device, dtype=reward.dtype) ** steps
    # Episodes that ended before the last step, and steps that do not count, cut the path permanently.
    ends = _windows(done | terminated, rollout, fill=True).to(torch.int64)
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
