"""Parts of the actors on a box of actions: bounds, the tanh squash, and one way to act.

Shapes: ``*B`` batch, ``D`` action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torch.nn import functional as F

Bound = Tensor | float | Sequence[float]


class BoxActor(TensorDictModuleBase):
    """Base of the actors on a box of actions: a subclass says how it acts, in :meth:`acted`.

    Args:
        in_keys: observation keys.
        action_key: where the action goes.
        log_prob: also write the log-probability, to the action key with ``_log_prob`` appended.

    Attributes:
        stored_action_key: what a loss reads from replay (the action).
    """

    low: Tensor
    high: Tensor
    torso: nn.Module

    def __init__(self, in_keys: Sequence[NestedKey], action_key: NestedKey, *, log_prob: bool = True) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(in_keys), [action_key]
        self.action_key = self.stored_action_key = action_key
        if log_prob:
            self.log_prob_key = suffixed(action_key, "_log_prob")
            self.out_keys.append(self.log_prob_key)
            self.dist_sample_keys, self.log_prob_keys = [action_key], [self.log_prob_key]  # where SACLoss looks

    def acted(self, state: Any) -> dict[NestedKey, Tensor]:
        """The entries to write at ``state``, a TensorDict or a dict of tensors, which is left as it is."""
        raise NotImplementedError

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key, value in self.acted(tensordict).items():
            tensordict.set(key, value)
        return tensordict

    def plain(self, state: dict[Any, Tensor]) -> None:
        """:meth:`forward` on a dict of tensors."""
        state.update(self.acted(state))

    def squashed(self, u: Tensor) -> Tensor:
        """The action ``[*B, D]`` of ``u``, inside the box also where rounding would leave it."""
        return squashed(u, self.low, self.high)

    def _hold_box(self, low: Tensor, high: Tensor) -> None:
        """Keep the bounds as buffers, and the box and all layers in the dtype of the torso."""
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.to(next((p.dtype for p in self.torso.parameters()), low.dtype))

    def _torso_features(self, state: Any) -> Tensor:
        return self.torso(*(state[key] for key in self.in_keys))


def suffixed(key: NestedKey, suffix: str) -> NestedKey:
    """``key`` with ``suffix`` appended to its (last) name."""
    return key + suffix if isinstance(key, str) else (*key[:-1], key[-1] + suffix)


def squashed(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``low + (high - low) (1 + tanh(u)) / 2``, clamped: rounding may leave the box by one unit in the last place."""
    return (low + (high - low) * (1 + u.tanh()) / 2).clamp(low, high)


def unsquashed(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The ``u`` whose :func:`squashed` is ``action``, finite at the bounds."""
    return clamped_atanh((2 * action - low - high) / (high - low))


def clamped_atanh(x: Tensor) -> Tensor:
    """``atanh(x)``, clamped at ``1 - 1e-6`` (``1 - 1e-12`` in float64)."""
    limit = 1 - (1e-12 if x.dtype == torch.float64 else 1e-6)
    return x.clamp(-limit, limit).atanh()


def log_sech2(u: Tensor) -> Tensor:
    """``ln(1 - tanh(u)^2)``, in the form that does not underflow."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def check_box(low: Tensor, high: Tensor) -> None:
    """Raises ValueError unless ``low`` and ``high`` are finite and low is below high."""
    if torch.compiler.is_compiling():  # would read tensors on the host
        return
    if not torch.isfinite(high - low).all():
        raise ValueError(
            f"The policy needs a bounded action space (finite low and high), got low={low.tolist()} and "
            f"high={high.tolist()}."
        )
    if not (low < high).all():
        raise ValueError(f"low must be below high, got low={low.tolist()} and high={high.tolist()}.")


def box_bounds(low: Bound, high: Bound) -> tuple[Tensor, Tensor]:
    """Bounds ``[D]`` of a box of actions, from numbers or vectors.

    Raises:
        ValueError: bounds of more dimensions or of two lengths, or no box.
    """
    bottom, top = (torch.atleast_1d(torch.as_tensor(bound)).float() for bound in (low, high))
    if bottom.ndim > 1 or top.ndim > 1 or (len(bottom) != len(top) and 1 not in (len(bottom), len(top))):
        shapes = f"{list(bottom.shape)} and {list(top.shape)}"
        raise ValueError(f"low and high must be numbers or vectors [D], got shapes {shapes}.")
    bottom, top = (bound.clone() for bound in torch.broadcast_tensors(bottom, top))
    check_box(bottom, top)
    return bottom, top
