"""The target of every method here, made of what the networks say: one step, n steps or a lambda-return.

Shapes: ``*B`` batch (``[*B, T]`` for lambda-returns), ``M`` values of a head (1 for an expected value).
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.functional.returns import lambda_return
from torchrl_reg.torchrl_compat import entry


def terminated_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """Whether s' is terminal, ``[*B, 1]``; ``done`` where the data do not tell termination from truncation."""
    terminated = entry(tensordict, ("next", keys.terminated))
    return tensordict.get(("next", keys.done)) if terminated is None else terminated


def done_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """Whether the episode ends with s', ``[*B, 1]``; ``terminated`` where the data do not say more."""
    done = entry(tensordict, ("next", keys.done))
    return tensordict.get(("next", keys.terminated)) if done is None else done


def check_single_steps(tensordict: TensorDictBase, keys: Any, what: str) -> None:
    """Refuse n-step transitions where ``what`` is made of single ones."""
    if entry(tensordict, keys.steps_to_next_obs) is not None:
        raise ValueError(
            f"data must hold single steps for {what}, got n-step transitions (they have an entry "
            f"{keys.steps_to_next_obs!r})."
        )


def regularized_target(
    tensordict: TensorDictBase,
    keys: Any,
    next_value: Tensor,
    *,
    gamma: Tensor,
    lmbda: Tensor | None = None,
    bonus: Tensor | None = None,
    action_cost: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``r + bonus + gamma^n (1 - terminated) next_value``, or with ``lmbda`` the lambda-return; like ``next_value``.

    ``n`` is 1, or ``steps_to_next_obs`` where the data have it (TorchRL's MultiStep). A lambda-return bootstraps where
    an episode is truncated, where the data end and where padding begins.

    Args:
        tensordict: the data; ``keys`` names its entries.
        next_value: ``V(s') [*B, M]``. bonus: of the shaping ``[*B]``. All in reward units.
        action_cost: the stored action's share of the regularizer ``[*B]``, for lambda-returns.
        mask: the rows ``[*B]`` that count, for lambda-returns; None: all.

    Raises:
        RuntimeError: the reward is not ``[*B, 1]``.
        ValueError: n-step transitions for a lambda-return.
    """
    reward, terminated = entry(tensordict, ("next", keys.reward)), terminated_flag(tensordict, keys)
    if not reward.shape == terminated.shape == (*next_value.shape[:-1], 1):
        raise RuntimeError(
            f"reward and terminated must have shape {(*next_value.shape[:-1], 1)}, got {tuple(reward.shape)} and "
            f"{tuple(terminated.shape)}."
        )
    # A fill, not a product as in TorchRL: what follows a terminal state, NaN included, must not reach the target.
    next_value = next_value.masked_fill(terminated, 0.0)
    if lmbda is None:
        steps = entry(tensordict, keys.steps_to_next_obs)
        if steps is not None:
            gamma = (gamma ** steps.view_as(reward)).to(reward.dtype)
        target = reward + gamma * next_value
        return target if bonus is None else target + bonus.unsqueeze(-1).to(target.dtype)
    check_single_steps(tensordict, keys, "a lambda-return")
    if bonus is not None:
        reward = reward + bonus.unsqueeze(-1).to(reward.dtype)
    ends = done_flag(tensordict, keys) | terminated
    if mask is not None:  # the last step before padding ends its sequence, as a truncation does
        mask = mask.reshape(ends.shape)
        ends = ends | ~mask.roll(-1, -2)
        reward, next_value = reward.masked_fill(~mask, 0.0), next_value.masked_fill(~mask, 0.0)
    cost = None if action_cost is None else action_cost.unsqueeze(-1).to(reward.dtype)
    return lambda_return(reward, next_value.to(reward.dtype), ends, gamma=gamma, lmbda=lmbda, action_cost=cost)
