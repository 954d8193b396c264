"""What a loss computes on its way, where its value does not show a mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_reg.torchrl_compat import TorchDispatchMode

_CLAMPS = {torch.ops.aten.clamp, torch.ops.aten.clamp_, torch.ops.aten.clip, torch.ops.aten.clip_}
_SOFTMAXES = {torch.ops.aten._softmax, torch.ops.aten._log_softmax, torch.ops.aten.logsumexp}


class Trace(TorchDispatchMode):
    """Records the bounds of clips and the inputs of softmaxes; random numbers in [0, 1) are all 1/2.

    ``tau ln pi <= 0``, so that a clip above 0 changes no target; and ``q - tau ln pi`` is the same for all actions, so
    that any policy gives it the same mean. Both are mistakes none the less, and errors elsewhere: the second in M-IQN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clips: list[tuple[float, float]] = []
        self.softmaxes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet in _CLAMPS:
            low, high = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in ((1, "min"), (2, "max")))
            if low is not None and high is not None:
                self.clips.append((float(low), float(high)))
        elif packet in _SOFTMAXES:
            self.softmaxes.append(args[0].detach().clone())
        out = func(*args, **kwargs)
        return torch.full_like(out, 0.5) if packet is torch.ops.aten.rand else out

    def clips_above_zero(self, clip_min: float) -> float | None:
        """The upper end of a clip whose lower one is ``clip_min``, if it is above 0."""
        return next((high for low, high in self.clips if abs(low - clip_min) < 1e-6 and high > 1e-6), None)

    def softmax_of(self, q: Tensor) -> bool:
        """Whether a softmax was taken of the values ``q [A]`` as they are, up to a shift."""
        for given in self.softmaxes:
            flat = given.double().flatten()
            if flat.shape == q.shape and ((flat - flat.max()) - (q - q.max())).abs().max() < 1e-6:
                return True
        return False
