"""Layer normalization of vectors and images, and how networks ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

#: Makes the normalization of features of a shape, ``[F]`` or ``[C, H, W]``; the empty list is none.
Normalization = Callable[[Sequence[int]], list[nn.Module]]


class ChannelNorm(nn.LayerNorm):
    """Normalizes the channels at each place of an image, ``[*B, C, H, W]``, with a scale and a shift per channel.

    It is what a layer norm over the last axis does in libraries whose images end in channels (flax), and another
    function than one over the whole image, torch's ``LayerNorm([C, H, W])``.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.movedim(-3, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.movedim(-1, -3)


def normalization(kind: str, eps: float) -> Normalization:
    """``"none"``, ``"channels"`` (per place of an image) or ``"image"`` (over all of it); vectors are the same to both.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("none", "channels", "image"):
        raise ValueError(f"layer_norm must be 'none', 'channels' or 'image', got {kind!r}.")

    def make(shape: Sequence[int]) -> list[nn.Module]:
        if kind == "none":
            return []
        if kind == "channels" and len(shape) == 3:
            return [ChannelNorm(shape[0], eps=eps)]
        return [nn.LayerNorm(list(shape), eps=eps)]

    return make


def no_normalization(shape: Sequence[int]) -> list[nn.Module]:
    """None."""
    return []
