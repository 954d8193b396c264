"""The door of every loss: what must not count is zero behind it, NaN included, so that nothing below knows of it.

Shapes: ``*B`` batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_reg.torchrl_compat import entry, shallow_copy


def cleaned(
    tensordict: TensorDictBase,
    mask: Tensor | None,
    ended: Tensor,
    *,
    action: NestedKey,
    here: Iterable[NestedKey] = (),
    next_states: Iterable[NestedKey] = (),
) -> TensorDictBase:
    """A shallow copy with zeros (True in masks of actions) in entries that do not count.

    That is in rows outside ``mask [*B]``, and in ``next_states``, which are keys below ``"next"``, also behind the end
    ``[*B, 1]`` of an episode. A NaN that enters a network makes its gradients NaN even where the loss has none. Floats
    are replaced only where they are not finite, so that batch statistics are those of the data.
    """
    out = shallow_copy(tensordict)
    if mask is not None:
        _blank(out, action, ~mask, whole=True)  # an index out of range, a point outside the box
        for key in here:
            _blank(out, key, ~mask)
    unused = ended.squeeze(-1) if mask is None else ended.squeeze(-1) | ~mask
    following = out.get("next")
    for key in next_states:
        _blank(following, key, unused)
    return out


def _blank(tensordict: TensorDictBase, key: NestedKey, rows: Tensor, *, whole: bool = False) -> None:
    found = entry(tensordict, key)
    if found is None:
        return
    rows = rows.reshape(rows.shape + (1,) * (found.ndim - rows.ndim))
    if found.is_floating_point() and not whole:
        rows = rows & ~found.isfinite()
    # An all-False action mask would produce NaN, so it is filled with True.
    fill = found.dtype == torch.bool and not whole
    tensordict.set(key, found.masked_fill(rows, fill))
