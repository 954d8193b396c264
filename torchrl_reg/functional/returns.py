"""Lambda-returns with a cost at every step.

Shapes: ``*B`` batch, ``T`` time, ``M`` values of a head (1 for an expected value).
"""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor,
    next_value: Tensor,
    ends: Tensor,
    *,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    action_cost: Tensor | None = None,
) -> Tensor:
    r"""``G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - c_{t+1}))``, and ``r_t + gamma V(s_{t+1})``
    where the sequence ends.

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
    r"""``G_t = r_t + gamma (V(s_{t+1}) + lambda (G_{t+1} - V(s_{t+1}) - c_{t+1}))``, and ``r_t + gamma V(s_{t+1})``
    where the sequence ends.

    With ``c_t = q(s_t, a_t) - V(s_t)`` this is Q(lambda) with off-policy correction, whose fixed point is the optimal
    one whatever acts: of the soft value ``c_t = tau ln pi(a_t|s_t)``, of the maximum ``c_t`` is minus the advantage
    gap, its limit ``tau -> 0``. With ``c = 0`` and the maximum it is Peng's Q(lambda), which is biased
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
