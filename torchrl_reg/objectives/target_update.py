"""Target-network updates in one fused call; a period of N copies on every N-th call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.modules.ensembles import pointers
from torchrl_reg.regularizers.checks import as_number

#: Buffers that are drawn, not learnt: those of NoisyLinear.
NOISE = ("weight_epsilon", "bias_epsilon")


class _Lists(NamedTuple):
    """Online and target tensors in one order, and the pointers that show when they have been replaced."""

    sources: list[Tensor]
    targets: list[Tensor]
    buffers: list[Tensor]
    target_buffers: list[Tensor]
    leaves: list[Tensor]
    memory: list[int]
    lasts: list[tuple[Any, Any, Any]]


class _ForeachUpdate(TargetNetUpdater):
    """A TorchRL target updater whose step touches all tensors in one ``torch._foreach`` call."""

    def _tensors(self) -> _Lists:
        """Listed again when loss.to(...) or a cast has replaced them."""
        held = self.__dict__.get("_lists")
        if (
            held is None
            or pointers(held.leaves) != held.memory
            or any(group.get(key) is not t for group, key, t in held.lasts)
        ):
            held = self.__dict__["_lists"] = self._list_tensors()
        return held

    def _list_tensors(self) -> _Lists:
        parameters, buffers, leaves, lasts = [], [], [], []
        for source_name, target_name in zip(self._source_names, self._target_names, strict=True):
            source_params, target_params = (getattr(self.loss_module, n) for n in (source_name, target_name))
            for key, source in source_params.items(True, True):
                pair = (source.data, target_params.get(key).data)
                if source.requires_grad:
                    parameters.append(pair)
                    leaves += [source, target_params.get(key)]
                elif (key if isinstance(key, str) else key[-1]) not in NOISE:
                    buffers.append(pair)
            # .to() replaces all tensors of a group, so checking the last is enough.
            lasts += [(params, key, params.get(key)) for params in (source_params, target_params)]
        online, target = ([[pair[i] for pair in pairs] for pairs in (parameters, buffers)] for i in (0, 1))
        return _Lists(online[0], target[0], online[1], target[1], leaves, pointers(leaves), lasts)

    def _copy_buffers(self, held: _Lists) -> None:
        if held.buffers:
            torch._foreach_copy_(held.target_buffers, held.buffers)


class HardTargetUpdate(_ForeachUpdate):
    """Copy the online network to the target network on every ``period_updates``-th call of :meth:`step`.

    Buffers are copied with the parameters (batch statistics, the vectors of a spectral norm), the noise of a
    :class:`~torchrl.modules.NoisyLinear` is not: each network has its own. TorchRL's
    ``HardUpdate(value_network_update_interval=N)`` copies on every (N+1)-th call.

    Source: Mnih et al. 2015 (DQN).

    Args:
        loss_module: a loss with target parameters; they are set to the online ones at once.
        period_updates: number of gradient updates between copies, >= 1.

    Raises:
        ValueError: ``period_updates`` is not an integer >= 1.

    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import SoftDQNLoss
    >>> loss = SoftDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> HardTargetUpdate(loss, period_updates=100).step()
    """

    def __init__(self, loss_module: LossModule, *, period_updates: int) -> None:
        if type(period_updates) is not int or period_updates < 1:
            raise ValueError(f"period_updates must be an integer >= 1, got {period_updates!r}.")
        super().__init__(loss_module)
        self.period_updates = period_updates
        self.counter = 0

    def step(self) -> None:
        """Count one gradient update, and copy if it is the period's last."""
        self.counter = (self.counter + 1) % self.period_updates
        if self.counter == 0:
            held = self._tensors()
            torch._foreach_copy_(held.targets, held.sources)
            self._copy_buffers(held)


class PolyakTargetUpdate(_ForeachUpdate):
    """Move the target network by ``target += rate * (online - target)`` on every call of :meth:`step`.

    Buffers are copied whole: a vector of a spectral norm is not averaged, and batch statistics are averages already.
    The noise of a :class:`~torchrl.modules.NoisyLinear` stays each network's own.

    Source: Lillicrap et al. 2016 (DDPG).

    Args:
        loss_module: a loss with target parameters; they are set to the online ones at once.
        rate: step size in (0, 1] without unit, often called the Polyak rate; its inverse is a time, in updates.

    Raises:
        ValueError: ``rate`` outside (0, 1].

    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import SoftDQNLoss
    >>> loss = SoftDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> PolyakTargetUpdate(loss, rate=0.005).step()
    """

    def __init__(self, loss_module: LossModule, *, rate: float) -> None:
        number = as_number(rate)
        if number is None or not 0 < number <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate!r}.")
        super().__init__(loss_module)
        self.rate = number

    def step(self) -> None:
        """Count one gradient update."""
        held = self._tensors()
        torch._foreach_lerp_(held.targets, held.sources, self.rate)
        self._copy_buffers(held)

    def traced_step(self, rate: Tensor) -> None:
        """The same with a 0-dimensional ``rate``, in operations for a graph."""
        held = self._tensors()
        moved = [t + (s - t) * rate for s, t in zip(held.sources, held.targets, strict=True)]
        torch._foreach_copy_(held.targets, moved)
        self._copy_buffers(held)
