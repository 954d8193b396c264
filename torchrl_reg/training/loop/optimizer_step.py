"""An optimizer's step without the bookkeeping: the same kernel on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from torchrl_reg.modules.stacked import stack_as_views
from torchrl_reg.torchrl_compat import has_step_hooks


class _Held(NamedTuple):
    """What the kernel reads and writes for one parameter group."""

    number: int
    params: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


class OptimizerStep:
    """``optimizer.step()``, bit for bit; for a fused Adam, without the cost of hooks, profiler and grouping.

    The state stays in the optimizer, under its usual names: ``state_dict``, ``load_state_dict`` and learning rates
    assigned to ``param_groups`` work as always. Any other optimizer, one with hooks or a PyTorch scheduler attached,
    and a step at which some parameter has no gradient go through ``optimizer.step()`` itself.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._state: Any = None  # the one whose tensors are held
        self._held: list[_Held] = []
        self._without_state: list[Tensor] = []

    @property
    def held(self) -> list[_Held] | None:
        """The kernel's arguments, by group; None if steps go through ``optimizer.step()``."""
        return self._held if self._is_held() and not has_step_hooks(self.optimizer) else None

    def __call__(self) -> None:
        optimizer = self.optimizer
        gradients = self._gradients() if self._is_held() else None
        if gradients is None or has_step_hooks(optimizer):
            optimizer.step()
            self.hold()
            return
        with torch.no_grad():
            for held, grads in zip(self._held, gradients, strict=True):
                torch._foreach_add_(held.steps, 1)
                _call_kernel(held, grads, optimizer.param_groups[held.number])

    def _is_held(self) -> bool:
        """Whether the optimizer still has the state and groups held here, and its rates are numbers."""
        groups = self.optimizer.param_groups
        same = self._state is self.optimizer.state and len(groups) == len(self._held)
        return same and not any(isinstance(group["lr"], Tensor) for group in groups)

    def _gradients(self) -> list[list[Tensor]] | None:
        """The gradients of each held group; None unless exactly the held parameters have one."""
        found = []
        for held in self._held:
            grads = [parameter.grad for parameter in held.params]
            if any(grad is None for grad in grads):
                return None
            found.append(grads)
        complete = all(parameter.grad is None for parameter in self._without_state)
        return found if complete else None  # type: ignore[return-value]

    def hold(self) -> None:
        """Takes the kernel's arguments from the optimizer's state."""
        self._state, self._held, self._without_state = self.optimizer.state, [], []
        if type(self.optimizer) not in (Adam, AdamW):
            return
        groups = self.optimizer.param_groups
        held = [self._of_group(number, group) for number, group in enumerate(groups)]
        if all(group is not None for group in held):
            self._held = [group for group in held if group]

    def _of_group(self, number: int, group: dict[str, Any]) -> _Held | None:
        """The tensors of a group that one kernel call can step; None if one call is not enough."""
        state = self.optimizer.state
        params = [parameter for parameter in group["params"] if state.get(parameter)]
        self._without_state += [parameter for parameter in group["params"] if not state.get(parameter)]
        numbers = all(isinstance(group[name], float | int) for name in ("lr", "eps", "weight_decay"))
        betas = all(isinstance(beta, float) for beta in group["betas"])
        one_kind = len({(parameter.device, parameter.dtype) for parameter in params}) == 1
        if not (group["fused"] and not group["amsgrad"] and numbers and betas and one_kind):
            return None
        rows = [[state[parameter][name] for parameter in params] for name in ("exp_avg", "exp_avg_sq", "step")]
        return _Held(number, params, *rows)


class StackedStep:
    """The step of several optimizers whose parameters are views ``[s]`` of stacked ones: one call for all.

    Their moments become views of stacked tensors, too, so each optimizer still holds its own state.
    """

    def __init__(self, optimizers: list[OptimizerStep], whole: Callable[[nn.Parameter], nn.Parameter]) -> None:
        self._optimizers = optimizers
        self._groups: list[tuple[_Held, Tensor]] = []
        for of_each in zip(*[optimizer.held or [] for optimizer in optimizers], strict=True):
            first = of_each[0]
            params: list[Tensor] = [whole(parameter) for parameter in first.params]  # type: ignore[arg-type]
            exp_avgs = _joined([held.exp_avgs for held in of_each])
            exp_avg_sqs = _joined([held.exp_avg_sqs for held in of_each])
            counts = stack_as_views([count for held in of_each for count in held.steps])
            self._groups.append((_Held(first.number, params, exp_avgs, exp_avg_sqs, first.steps), counts))

    @classmethod
    def of(cls, optimizers: list[OptimizerStep], whole: Callable[[nn.Parameter], nn.Parameter]) -> StackedStep | None:
        """The step of all ``optimizers``; None where they have no state yet, or differ, so that each has to step."""
        for optimizer in optimizers:
            optimizer.hold()
        kinds = {type(optimizer.optimizer) for optimizer in optimizers}
        counts = {
            tuple(int(count) for held in optimizer.held or [] for count in held.steps) for optimizer in optimizers
        }
        return cls(optimizers, whole) if len(kinds) == len(counts) == 1 and () not in counts else None

    def is_current(self) -> bool:
        """Whether all optimizers still hold what was stacked, with the same settings."""
        groups = self._optimizers[0].optimizer.param_groups
        return all(optimizer.held is not None for optimizer in self._optimizers) and all(
            _settings(group) == _settings(other)
            for optimizer in self._optimizers[1:]
            for group, other in zip(groups, optimizer.optimizer.param_groups, strict=True)
        )

    def __call__(self) -> None:
        with torch.no_grad():
            for held, counts in self._groups:
                counts.add_(1)
                grads: list[Any] = [parameter.grad for parameter in held.params]
                _call_kernel(held, grads, self._optimizers[0].optimizer.param_groups[held.number])


def _settings(group: dict[str, Any]) -> list[Any]:
    return [group[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")]


def _joined(moments: list[list[Tensor]]) -> list[Tensor]:
    """``[S, ...]`` for each parameter; the optimizers' own moments become views of it."""
    return [stack_as_views(singles) for singles in zip(*moments, strict=True)]


def _call_kernel(held: _Held, grads: list[Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    kernel(
        *(held.params, grads, held.exp_avgs, held.exp_avg_sqs, [], held.steps),
        amsgrad=False,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
