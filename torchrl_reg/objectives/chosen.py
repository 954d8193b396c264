"""The value of the stored action."""

from __future__ import annotations

import torch
from torch import Tensor


def chosen_action_value(q: Tensor, action: Tensor, action_space: str) -> Tensor:
    """Entry of ``q [*B, A]`` at ``action`` (``[*B]`` or ``[*B, 1]`` categorical, ``[*B, A]`` one-hot): ``[*B]``."""
    if action_space == "categorical":
        index = action if action.ndim == q.ndim else action.unsqueeze(-1)
        return q.gather(-1, index).squeeze(-1)
    # where, not a product: the other actions may be masked with -inf.
    return torch.where(action.bool(), q, q.new_zeros(())).sum(-1)
