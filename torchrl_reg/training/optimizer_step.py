"""An optimizer's step without its bookkeeping: the same kernel on the same tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from torchrl_reg.torchrl_compat import has_step_hooks


class _Held(NamedTuple):
    """What the kernel reads and writes of one parameter group."""

    number: int
    params: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


class OptimizerStep:
    """``optimizer.step()``, to the last bit; of a fused Adam without hooks, profiler and grouping.

    The state stays the optimizer's own, under its names: ``state_dict`` and ``load_state_dict`` mean what they always
    do, and so do learning rates assigned to ``param_groups``. Any other optimizer, one that a scheduler of PyTorch's or
    a hook listens to, and a step at which some parameter has no gradient go through ``optimizer.step()`` itself.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._state: Any = None  # whose tensors are held
        self._held: list[_Held] = []
        self._without_state: list[Tensor] = []

    def __call__(self) -> None:
        optimizer = self.optimizer
        gradients = self._gradients() if self._is_held() else None
        if gradients is None or has_step_hooks(optimizer):
            optimizer.step()
            self._hold()
            return
        with torch.no_grad():
            for held, grads in zip(self._held, gradients, strict=True):
                self._step(held, grads, optimizer.param_groups[held.number])

    def _step(self, held: _Held, grads: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        torch._foreach_add_(held.steps, 1)
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

    def _is_held(self) -> bool:
        """Whether the optimizer still has the state and the groups that are held, and rates that are numbers."""
        groups = self.optimizer.param_groups
        same = self._state is self.optimizer.state and len(groups) == len(self._held)
        return same and not any(isinstance(group["lr"], Tensor) for group in groups)

    def _gradients(self) -> list[list[Tensor]] | None:
        """The gradients of each held group, or None where they are not those of just the held parameters."""
        found = []
        for held in self._held:
            grads = [parameter.grad for parameter in held.params]
            if any(grad is None for grad in grads):
                return None
            found.append(grads)
        complete = all(parameter.grad is None for parameter in self._without_state)
        return found if complete else None  # type: ignore[return-value]

    def _hold(self) -> None:
        self._state, self._held, self._without_state = self.optimizer.state, [], []
        if type(self.optimizer) not in (Adam, AdamW):
            return
        groups = self.optimizer.param_groups
        held = [self._of_group(number, group) for number, group in enumerate(groups)]
        if all(group is not None for group in held):
            self._held = [group for group in held if group]

    def _of_group(self, number: int, group: dict[str, Any]) -> _Held | None:
        """The tensors of a group that one call of the kernel steps; None for a group that takes more than that."""
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
