"""An optimizer's step without the bookkeeping: the same kernel on the same tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from torchrl_reg.torchrl_compat import has_step_hooks


class _Held(NamedTuple):
    """What the kernel reads and writes for one parameter group."""

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

    def __call__(self) -> None:
        optimizer = self.optimizer
        groups = optimizer.param_groups
        held = self._state is optimizer.state and [len(h.params) for h in self._held] == [
            len(group["params"]) for group in groups
        ]
        gradients = [[parameter.grad for parameter in group["params"]] for group in groups] if held else []
        complete = held and all(grad is not None for grads in gradients for grad in grads)
        if not complete or has_step_hooks(optimizer) or any(isinstance(group["lr"], Tensor) for group in groups):
            optimizer.step()
            self._hold()
            return
        with torch.no_grad():
            for group, of_group, grads in zip(groups, self._held, gradients, strict=True):
                torch._foreach_add_(of_group.steps, 1)
                _call_kernel(of_group, grads, group)

    def _hold(self) -> None:
        """Takes the kernel's arguments from the optimizer's state, if one call of it can step each group."""
        self._state, self._held = self.optimizer.state, []
        groups = self.optimizer.param_groups
        if type(self.optimizer) in (Adam, AdamW) and all(map(self._is_plain, groups)):
            for group in groups:
                states = [self._state[parameter] for parameter in group["params"]]
                rows = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
                self._held.append(_Held(list(group["params"]), *rows))

    def _is_plain(self, group: dict[str, Any]) -> bool:
        params = group["params"]
        numbers = all(isinstance(group[name], float | int) for name in ("lr", "eps", "weight_decay"))
        betas = all(isinstance(beta, float) for beta in group["betas"])
        one_kind = len({(parameter.device, parameter.dtype) for parameter in params}) == 1
        stepped = all(self._state.get(parameter) for parameter in params)
        return bool(group["fused"]) and not group["amsgrad"] and numbers and betas and one_kind and stepped


def _call_kernel(held: _Held, grads: list[Any], group: dict[str, Any]) -> None:
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
