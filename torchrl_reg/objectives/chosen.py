"""The stored action and its value."""

from __future__ import annotations

from torch import Tensor


def action_index(action: Tensor, action_space: str, batch_dims: int) -> Tensor:
    """The action (``[*B]`` or ``[*B, 1]`` categorical, ``[*B, A]`` one-hot) as an index ``[*B]``.

    ``batch_dims`` is the number of dimensions of ``*B``: it tells ``[*B, 1]`` from a batch that ends in 1.
    """
    if action_space == "one_hot":
        return action.long().argmax(-1)  # long, because argmax takes no bool
    return action.squeeze(-1) if action.ndim > batch_dims else action


def at(values: Tensor, index: Tensor) -> Tensor:
    """Entry of ``values [*B, A]`` at ``index [*B]``: ``[*B]``."""
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
