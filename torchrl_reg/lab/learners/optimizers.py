"""Optimizers by name, as ``algo.optimizer`` of a recipe names them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RAdam, RMSprop

from torchrl_reg.compat import flatten_tensors

#: What ``algo.optimizer`` may say.
OPTIMIZERS = ("adam", "radam", "rmsprop")


def make_optimizer(
    name: str,
    parameters: Iterable[Any],
    *,
    learning_rate: float,
    eps: float,
    decay: float = 0.95,
    capturable: bool = False,
) -> Optimizer:
    """The optimizer ``name``: ``"adam"`` in one kernel, ``"radam"``, or ``"rmsprop"``, which is centered.

    Args:
        parameters: parameters or parameter groups.
        learning_rate: step size.
        eps: added to the denominator, outside its square root (TensorFlow's RMSProp adds it inside).
        decay: of RMSProp's running averages, per update.
        capturable: whether CUDA graphs may hold its step.

    Raises:
        ValueError: another name.
    """
    shared: dict[str, Any] = {"lr": learning_rate, "eps": eps, "capturable": capturable}
    if name == "adam":
        return Adam(parameters, fused=True, **shared)
    if name == "radam":
        return RAdam(parameters, foreach=True, **shared) if capturable else FlatRAdam(parameters, **shared)
    if name == "rmsprop":
        return RMSprop(parameters, alpha=decay, centered=True, foreach=True, **shared)
    raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")


class FlatRAdam(RAdam):
    """torch's RAdam in a dozen operations, however many parameters there are; equal up to rounding.

    The moments of a group lie side by side, those of a parameter are views of them, under their usual names. No hooks.

    Raises:
        ValueError: ``weight_decay`` or ``maximize``, which it does not have.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step for every group; each parameter must have a gradient."""
        for group, held in zip(self.param_groups, self.flat_moments(), strict=True):
            held.step(group, held.gradient())

    @torch.no_grad()
    def clipped_step(self, max_norm: float) -> Tensor:
        """One step of a single group along gradients scaled to ``max_norm`` at most; their norm before that.

        ``parameter.grad`` stays as it is. The norm is summed over one vector, torch's parameter by parameter.
        """
        (group,), (held,) = self.param_groups, self.flat_moments()
        gradient = held.gradient()
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1))  # without reading the norm back from a GPU
        held.step(group, gradient)
        return norm

    def flat_moments(self) -> list[_Flat]:
        """The moments of each group, laid side by side where they do not lie so yet."""
        for group in self.param_groups:
            held = group.get("flat")
            if held is None or not held.is_current(self.state):
                group["flat"] = _Flat(group["params"], self.state)
        return [group["flat"] for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group.pop("flat", None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        for group in state_dict["param_groups"]:
            _check_group(group)
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group.pop("flat", None)


def _check_group(group: dict[str, Any]) -> None:
    for name, without in (("weight_decay", 0), ("maximize", False)):
        if group.get(name, without):
            raise ValueError(f"{name} must be {without} in FlatRAdam (torch.optim.RAdam has it), got {group[name]!r}.")


class _Flat:
    """The moments of a group's parameters as one vector each."""

    def __init__(self, parameters: list[Tensor], state: Any) -> None:
        self.parameters = parameters
        for parameter in parameters:
            if not state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state[parameter] = {"step": torch.zeros(()), **zeros}
        states = [state[parameter] for parameter in parameters]
        self.mean, self.square = (self._joined(states, name) for name in ("exp_avg", "exp_avg_sq"))
        self.counts = torch.stack([each["step"] for each in states])
        for each, count in zip(states, self.counts.unbind(), strict=True):
            each["step"] = count
        self.update = torch.empty_like(self.mean)
        self.updates = self._views(self.update)

    def _joined(self, states: list[dict[str, Tensor]], name: str) -> Tensor:
        whole = torch.cat([each[name].reshape(-1) for each in states])
        for each, view in zip(states, self._views(whole), strict=True):
            each[name] = view
        return whole

    def _views(self, whole: Tensor) -> list[Tensor]:
        parts = whole.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def is_current(self, state: Any) -> bool:
        """False where the moments were loaded anew, or lie elsewhere since (those of several seeds, side by side)."""
        first = state.get(self.parameters[0])
        return bool(first) and first["exp_avg"].data_ptr() == self.mean.data_ptr()

    def gradient(self) -> Tensor:
        """The gradients of the parameters, a new vector."""
        return flatten_tensors([parameter.grad for parameter in self.parameters])

    def step(self, group: dict[str, Any], gradient: Tensor) -> None:
        """One step along ``gradient``."""
        beta1, beta2 = group["betas"]
        self.counts.add_(1)
        count = int(self.counts[0])
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        unbiased = 1 - beta2**count
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * count * beta2**count / unbiased
        size = group["lr"] / (1 - beta1**count)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            size *= (rectified * unbiased) ** 0.5
            torch.sqrt(self.square, out=self.update).add_(group["eps"])
            torch.div(self.mean, self.update, out=self.update)
        else:
            self.update.copy_(self.mean)
        torch._foreach_add_(self.parameters, self.updates, alpha=-size)
