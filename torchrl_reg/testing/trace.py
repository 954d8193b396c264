"""What a loss computes on its way, where its value does not show a mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_reg.torchrl_compat import TorchDispatchMode

_CLAMPS = {torch.ops.aten.clamp, torch.ops.aten.clamp_, torch.ops.aten.clip, torch.ops.aten.clip_}
#: Operations with one bound -> which.
_HALF_CLAMPS = {
    **dict.fromkeys((torch.ops.aten.clamp_min, torch.ops.aten.clamp_min_, torch.ops.aten.maximum), "min"),
    **dict.fromkeys((torch.ops.aten.clamp_max, torch.ops.aten.clamp_max_, torch.ops.aten.minimum), "max"),
}
_SOFTMAXES = {torch.ops.aten._softmax, torch.ops.aten._log_softmax, torch.ops.aten.logsumexp, torch.ops.aten.exp}


class Trace(TorchDispatchMode):
    """Records the bounds of clips and the inputs of softmaxes; random numbers in [0, 1) are all 1/2.

    Or, if ``spread``, 1/4 and 3/4 in turn: then so are any even number of them in a row, however they are shared out.

    ``tau ln pi <= 0``, so that a clip above 0 changes no target; and ``q - tau ln pi`` is the same for all actions, so
    that any policy gives it the same mean. Both are mistakes none the less, and errors elsewhere: the second in M-IQN.
    """

    def __init__(self, spread: bool = False) -> None:
        super().__init__()
        self.spread, self.odd = spread, False
        self.clips: list[tuple[float, float]] = []
        self.clipped: list[tuple[Tensor, dict[str, float]]] = []
        self.softmaxes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        bounds: dict[str, Any] = {}
        if packet in _CLAMPS:
            bounds = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
        elif packet in _HALF_CLAMPS:
            bounds = {_HALF_CLAMPS[packet]: args[1] if len(args) > 1 else next(iter(kwargs.values()))}
        elif packet in _SOFTMAXES:
            self.softmaxes.append(args[0].detach().clone())
        out = func(*args, **kwargs)
        if bounds:
            self._clip(args[0], out, bounds)
        return self._chosen(out) if packet is torch.ops.aten.rand else out

    def _chosen(self, drawn: Tensor) -> Tensor:
        if not self.spread:
            return torch.full_like(drawn, 0.5)
        self.odd |= drawn.numel() % 2 == 1  # of which a half each is not to be had
        return (0.25 + 0.5 * (torch.arange(drawn.numel()) % 2)).to(drawn).view_as(drawn)

    def _clip(self, given: Tensor, out: Tensor, bounds: dict[str, Any]) -> None:
        """One bound may come after the other."""
        known = next((held for tensor, held in self.clipped if tensor is given), {})
        new = {k: float(v) for k, v in bounds.items() if isinstance(v, int | float) or getattr(v, "numel", int)() == 1}
        self.clipped.append((out, known | new))
        if len(known | new) == 2:
            self.clips.append(((known | new)["min"], (known | new)["max"]))

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
