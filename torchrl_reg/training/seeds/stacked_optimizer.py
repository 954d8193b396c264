"""One optimizer for parameters ``[S, ...]``, of which those of ``S`` optimizers are views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RAdam

from torchrl_reg.modules.stacked import stack_as_views
from torchrl_reg.torchrl_compat import has_step_hooks
from torchrl_reg.training.loop.optimizers import FlatRAdam

_SETTINGS = ("lr", "betas", "eps", "weight_decay", "maximize")
#: What steps for several of a kind.
_TOGETHER: dict[type[Optimizer], type[Optimizer]] = {Adam: Adam, AdamW: AdamW, RAdam: RAdam, FlatRAdam: RAdam}


class StackedOptimizer:
    """The step of several Adams or RAdams in one.

    Their moments become views of stacked tensors, too, so each optimizer still holds its own state, and the steps that
    it counts are counted.
    """

    def __init__(self, optimizers: Sequence[Optimizer], whole: Callable[[nn.Parameter], nn.Parameter]) -> None:
        self._optimizers, first = list(optimizers), optimizers[0]
        groups = [
            {**{name: group[name] for name in group if name != "flat"}, "params": [whole(p) for p in group["params"]]}
            for group in first.param_groups
        ]
        self._together = _TOGETHER[type(first)](groups)  # type: ignore[call-arg]
        self._states = [optimizer.state for optimizer in optimizers]
        counts: list[Tensor] = []
        for position in zip(*[_parameters(optimizer) for optimizer in optimizers], strict=True):
            states = [optimizer.state[p] for optimizer, p in zip(optimizers, position, strict=True)]
            counts += [state["step"] for state in states]
            moments = [name for name in states[0] if name != "step"]
            stacked: dict[str, Tensor] = {name: stack_as_views([s[name] for s in states]) for name in moments}
            self._together.state[whole(position[0])] = {"step": states[0]["step"].clone(), **stacked}
        self._counts = stack_as_views(counts)
        firsts = [_parameters(optimizer)[0] for optimizer in optimizers]
        self._moments = [(state[p], state[p]["exp_avg"]) for state, p in zip(self._states, firsts, strict=True)]

    @classmethod
    def of(
        cls, optimizers: Sequence[Optimizer], whole: Callable[[nn.Parameter], nn.Parameter]
    ) -> StackedOptimizer | None:
        """The step of all ``optimizers``; None where they have no state yet, or differ, so that each has to step."""
        alike = len({type(optimizer) for optimizer in optimizers}) == 1 and _agree(optimizers)
        if not alike or type(optimizers[0]) not in _TOGETHER or any(map(has_step_hooks, optimizers)):
            return None
        counts = {tuple(int(o.state.get(p, {}).get("step", -1)) for p in _parameters(o)) for o in optimizers}
        return cls(optimizers, whole) if len(counts) == 1 and -1 not in counts.pop() else None

    def is_current(self) -> bool:
        """True while all optimizers hold what was stacked, and have the same settings."""
        held = all(o.state is state for o, state in zip(self._optimizers, self._states, strict=True))
        held = held and all(state["exp_avg"] is moment for state, moment in self._moments)  # else one stepped alone
        return held and not any(map(has_step_hooks, self._optimizers)) and _agree(self._optimizers)

    def step(self) -> None:
        """Steps for all optimizers."""
        for group, settings in zip(self._together.param_groups, self._optimizers[0].param_groups, strict=True):
            group.update((name, settings[name]) for name in _SETTINGS)
        self._together.step()
        with torch.no_grad():
            self._counts.add_(1)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _agree(optimizers: Sequence[Optimizer]) -> bool:
    return all(_settings(optimizer) == _settings(optimizers[0]) for optimizer in optimizers[1:])


def _settings(optimizer: Optimizer) -> list[list[Any]]:
    return [[group[name] for name in _SETTINGS] for group in optimizer.param_groups]
