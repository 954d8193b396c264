"""Optimizers by name, as ``algo.optimizer`` of a recipe names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer, RAdam, RMSprop

from torchrl_reg.compat import flatten_tensors, has_step_hooks
from torchrl_reg.modules.ensembles import stack_as_views

#: Values of ``algo.optimizer``.
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
        """One step of a single group along gradients clipped to ``max_norm``; returns their norm before clipping.

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


class TracedAdam:
    """The step of a fused Adam in plain operations, for a graph, which computes them in one go with the gradients.

    Its state stays in the optimizer, under its usual names.

    Args:
        optimizer: one of which :meth:`fits` is true.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._state: Any = None  # the one whose tensors are held
        self._sizes: list[int] = []  # of the groups
        self._counts: list[Tensor] = []  # of each group, of all its parameters
        self._moments: list[Tensor] = []
        self._tensors: list[Tensor] = []

    @staticmethod
    def fits(optimizer: Optimizer) -> bool:
        """True if ``optimizer.step()`` is that of a plain fused Adam or AdamW."""
        if type(optimizer) not in (Adam, AdamW) or has_step_hooks(optimizer):
            return False
        return all(
            group["fused"] and not group["amsgrad"] and all(isinstance(group[name], float | int) for name in _NUMBERS)
            for group in optimizer.param_groups
        )

    def settings(self) -> list[Any]:
        """The settings that a graph holds fixed."""
        return [[len(group["params"]), *(group[name] for name in _FIXED)] for group in self._optimizer.param_groups]

    def tensors(self) -> list[Tensor]:
        """Counts and moments, made where there are none yet."""
        groups = self._optimizer.param_groups
        if self._state is not self._optimizer.state or self._sizes != [len(group["params"]) for group in groups]:
            state = self._state = self._optimizer.state
            self._sizes = [len(group["params"]) for group in groups]
            parameters = [p for group in groups for p in group["params"]]
            for parameter in (p for p in parameters if not state[p]):
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
            self._counts = [stack_as_views([state[p]["step"] for p in group["params"]]) for group in groups]
            self._moments = [state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
            self._tensors = [*self._counts, *self._moments]
        return self._tensors

    def check(self) -> None:
        """Raises ValueError unless the parameters of a group have been stepped equally often, but for frozen ones."""
        for group, counts in zip(self._optimizer.param_groups, self._counts, strict=True):
            if len({float(c) for c, p in zip(counts, group["params"], strict=True) if p.requires_grad}) > 1:
                raise ValueError("parameters of the optimizer have been stepped more often than others")

    def numbers(self) -> list[float]:
        """Of each group: the step size, the factor of the roots of the second moments, the decay of its parameters."""
        found = []
        for group, counts in zip(self._optimizer.param_groups, self._counts, strict=True):
            beta1, beta2 = group["betas"]
            count = float(counts[_place_of_learnt(group["params"])]) + 1
            found += [group["lr"] / (1 - beta1**count), (1 - beta2**count) ** -0.5]
            found.append(1 - group["lr"] * group["weight_decay"])
        return found

    def step(self, gradients: Sequence[Tensor | None], numbers: Sequence[Tensor]) -> None:
        """A step along ``gradients``."""
        old: list[Tensor] = []
        new: list[Tensor] = []
        place = iter(zip(gradients, self._moments[::2], self._moments[1::2], strict=True))
        for number, group in enumerate(self._optimizer.param_groups):
            size, root, decay = numbers[3 * number : 3 * number + 3]
            beta1, beta2 = group["betas"]
            stepped: list[float] = []
            for parameter in group["params"]:
                gradient, mean, square = next(place)
                stepped.append(float(gradient is not None))
                if gradient is None:
                    continue
                gradient = -gradient if group["maximize"] else gradient
                kept: Tensor = parameter
                if group["weight_decay"]:
                    decoupled = group["decoupled_weight_decay"]
                    kept = parameter * decay if decoupled else parameter
                    gradient = gradient if decoupled else gradient + group["weight_decay"] * parameter
                new_mean = mean + (1 - beta1) * (gradient - mean)
                new_square = beta2 * square + (1 - beta2) * gradient * gradient
                old += [parameter, mean, square]
                new += [kept - size * new_mean / (new_square.sqrt() * root + group["eps"]), new_mean, new_square]
            old.append(self._counts[number])
            new.append(self._counts[number] + torch.tensor(stepped, device=self._counts[number].device))
        torch._foreach_copy_(old, new)


class CapturedStep:
    """The step of any optimizer with ``capturable=True``, for a CUDA graph that is handed its learning rates.

    Args:
        optimizer: one that has stepped before; its state has the tensors of a graph.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._state: Any = None  # the one whose tensors are held
        self._count = 0  # of the parameters in it
        self._tensors: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """Those of the state."""
        state = self._optimizer.state
        if self._state is not state or self._count != len(state):
            self._state, self._count = state, len(state)
            self._tensors = [held for of in state.values() for held in of.values() if isinstance(held, Tensor)]
        return self._tensors

    def numbers(self) -> list[float]:
        """The learning rate of each group."""
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def settings(self) -> list[Any]:
        """The settings of a group that a graph holds fixed: all others."""
        return [
            [len(group["params"]), *(value for name, value in group.items() if name not in ("params", "lr"))]
            for group in self._optimizer.param_groups
        ]

    @contextmanager
    def rates(self, numbers: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the learning rates are these tensors."""
        groups = self._optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, numbers, strict=False):
                group["lr"] = rate
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate


def _place_of_learnt(parameters: Sequence[Tensor]) -> int:
    """The index of the first parameter that is not frozen."""
    return next((place for place, parameter in enumerate(parameters) if parameter.requires_grad), 0)


_NUMBERS = ("lr", "eps", "weight_decay")
_FIXED = ("betas", "eps", "weight_decay", "maximize", "decoupled_weight_decay")


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
