"""The one-step return that every one-step target here is made of."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

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


def one_step_return(tensordict: TensorDictBase, keys: Any, gamma: Tensor, next_value: Tensor) -> Tensor:
    """``r + gamma^n (1 - terminated) next_value``, in the shape of ``next_value`` (``[*B, 1]`` or ``[*B, M]``).

    ``n`` is 1, or ``steps_to_next_obs`` where the data have it (TorchRL's MultiStep); ``keys`` names the entries.

    Raises:
        RuntimeError: the reward is not ``[*B, 1]``.
    """
    reward = entry(tensordict, ("next", keys.reward))
    terminated = terminated_flag(tensordict, keys)
    if not reward.shape == terminated.shape == (*next_value.shape[:-1], 1):
        raise RuntimeError(
            f"reward and terminated must have shape {(*next_value.shape[:-1], 1)}, got {tuple(reward.shape)} and "
            f"{tuple(terminated.shape)}."
        )
    steps = entry(tensordict, keys.steps_to_next_obs)
    if steps is not None:
        gamma = (gamma ** steps.view_as(reward)).to(reward.dtype)
    # A fill, not a product as in TorchRL: what follows a terminal state, NaN included, must not reach the target.
    return reward + gamma * next_value.masked_fill(terminated, 0.0)
