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
