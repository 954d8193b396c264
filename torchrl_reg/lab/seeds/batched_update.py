"""One gradient step for all seeds, if their losses can be stacked.

Shapes: ``S`` seeds, ``B`` rows of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RAdam

from torchrl_reg.compat import fast_get, has_step_hooks, unchecked_tensordict
from torchrl_reg.lab.learners.optimizers import FlatRAdam
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.seeds.workers import Worker
from torchrl_reg.modules.ensembles import stack_as_views

Step = Callable[[TensorDictBase], Any]
_SETTINGS = ("lr", "betas", "eps", "weight_decay", "maximize")
#: Optimizer -> the one that steps several of them at once.
_STACKED: dict[type[Optimizer], type[Optimizer]] = {Adam: Adam, AdamW: AdamW, RAdam: RAdam, FlatRAdam: FlatRAdam}


class LossStack:
    """The stacked losses of all workers (``loss.stacked_with``), cached while the losses stay the same.

    Attributes:
        stacked: the stacked loss; None until there is one.
        losses: the losses in it.
        unsupported: True if the losses cannot be stacked.
    """

    def __init__(self) -> None:
        self.stacked: Any = None
        self.losses: list[Any] = []
        self.unsupported = False

    def holds(self, losses: Sequence[Any]) -> bool:
        """True if ``losses`` are stacked; stacks them if necessary."""
        if list(map(id, losses)) == list(map(id, self.losses)) and self.stacked.is_current():
            return True
        try:
            if not hasattr(losses[0], "stacked_with"):
                raise ValueError(f"loss must have a stacked form, got a {type(losses[0]).__name__}.")
            self.stacked, self.losses = losses[0].stacked_with(losses[1:]), list(losses)
        except ValueError as error:
            self.give_up(error)
        return not self.unsupported

    def give_up(self, reason: Exception) -> None:
        """Lets each worker step alone from now on, and prints the reason."""
        self.unsupported, self.stacked = True, None
        say(f"run.seeds: each seed is updated separately: {reason}", to_stderr=True)


def loss_stack(worker: Worker) -> LossStack:
    """The stack that all workers share."""
    return worker.shared("stack", LossStack)


class _SeedStep(NamedTuple):
    """One worker's input to a batched step."""

    loss: Any
    parameters: Sequence[nn.Parameter]
    optimizer: Optimizer
    minibatch: TensorDictBase
    fractions: Mapping[str, Tensor]


def batched_step(
    worker: Worker,
    alone: Step,
    make_gradients: Callable[[Any, Sequence[Any]], Callable[[TensorDictBase], Mapping[str, Tensor]]],
    loss: Any,
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    max_grad_norm: float | None = None,
) -> Step:
    """``alone``, or one step for all workers if their losses can be stacked (``loss.stacked_with``).

    It returns detached scalars, equal to those of ``alone`` up to the order of summation. If the batched step fails,
    e.g. because one seed is not finite, each worker steps alone, so that only that seed fails.
    """
    stack = loss_stack(worker)
    batched = worker.shared("gradient step", lambda: _BatchedStep(worker, make_gradients, max_grad_norm))
    check = getattr(loss, "check_data", lambda _: None)
    sample_fractions: Callable[[int], dict[str, Tensor]] = getattr(loss, "sample_fractions", lambda _: {})

    def step(minibatch: TensorDictBase) -> Any:
        if stack.unsupported or worker.companions == 1:
            return alone(minibatch)
        check(minibatch)
        kind = ("gradient step", getattr(loss, "diagnostics", None))
        fractions = sample_fractions(len(minibatch))  # here, to draw from this worker's generator
        seed = _SeedStep(loss, parameters, optimizer, minibatch, fractions)
        scalars = worker.barrier(kind, seed, batched, reentrant=True)
        if scalars is not None:
            return scalars
        return alone(_with_entries(minibatch, fractions) if fractions else minibatch)

    def stack_all(losses: list[Any]) -> list[None]:
        if not stack.unsupported and 1 < len(losses) == worker.companions:
            stack.holds(losses)
        return [None] * len(losses)

    worker.prepare = lambda: worker.barrier("stack", loss, stack_all)
    return step


class _BatchedStep:
    """Steps for all workers; they step alone while some are at another kind of update."""

    def __init__(self, worker: Worker, make_gradients: Callable[..., Any], max_grad_norm: float | None) -> None:
        self._worker, self._stack = worker, loss_stack(worker)  # any worker: it is read for `companions` only
        self._make_gradients, self._max_grad_norm = make_gradients, max_grad_norm
        self._stacked: Any = None  # the stack that self._gradients differentiates
        self._optimizer: StackedOptimizer | None = None
        self._shared: list[Tensor] = []  # gradients [S, ...], which the workers' gradients are views of
        self._firsts: list[Tensor | None] = []  # the gradient of each worker's first parameter

    def __call__(self, seeds: list[_SeedStep]) -> Sequence[Mapping[str, Tensor] | None]:
        """The scalars of each worker; None for those that must step alone."""
        alone, losses = [None] * len(seeds), [seed.loss for seed in seeds]
        if len(seeds) < self._worker.companions or not self._stack.holds(losses):
            return alone
        stacked = self._stack.stacked
        if stacked is not self._stacked:
            try:
                self._parameters = [stacked.parameter(parameter) for parameter in seeds[0].parameters]
            except ValueError as error:
                self._stack.give_up(error)
                return alone
            self._gradients = self._make_gradients(stacked.loss, self._parameters)
            self._stacked, self._optimizer = stacked, None
        stacked.loss.diagnostics = losses[0].diagnostics  # toggled between updates
        try:
            rows = _stacked_rows([seed.minibatch for seed in seeds])
            names = seeds[0].fractions
            fractions = {name: torch.stack([seed.fractions[name] for seed in seeds]) for name in names}
            entries = self._gradients(_with_entries(rows, fractions) if fractions else rows)
        except (RuntimeError, ValueError):
            return alone
        if self._max_grad_norm is not None:
            entries = {**entries, "grad_norm": self._clip(self._max_grad_norm)}
        self._copy_gradients(seeds)
        self._step([seed.optimizer for seed in seeds])
        return _split(entries, len(seeds))

    def _clip(self, max_norm: float) -> Tensor:
        """Clips each worker's gradients to the norm ``max_norm``; returns the norms ``[S]`` before clipping."""
        gradients = [whole.grad for whole in self._parameters]
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        return norms

    def _copy_gradients(self, seeds: list[_SeedStep]) -> None:
        """Copies the gradients ``[S, ...]`` into ``parameter.grad`` of each worker, which are views of one tensor."""
        firsts = [seed.parameters[0].grad for seed in seeds]
        if list(map(id, firsts)) != list(map(id, self._firsts)):
            self._shared = [torch.empty_like(whole) for whole in self._parameters]
            for position, shared in enumerate(self._shared):
                for seed, gradient in zip(seeds, shared.unbind(), strict=True):
                    seed.parameters[position].grad = gradient
            self._firsts = [seed.parameters[0].grad for seed in seeds]
        torch._foreach_copy_(self._shared, [whole.grad for whole in self._parameters])

    def _step(self, optimizers: list[Optimizer]) -> None:
        if self._optimizer is None or not self._optimizer.is_current():
            self._optimizer = StackedOptimizer.make(optimizers, self._stacked.parameter)
        for optimizer in optimizers if self._optimizer is None else [self._optimizer]:
            optimizer.step()


def _stacked_rows(minibatches: list[TensorDictBase]) -> TensorDict:
    """``[S, B]`` from S minibatches ``[B]``."""
    stacked: dict[str, Tensor | TensorDictBase] = {}
    for name, first in minibatches[0].items():
        if name == "index":  # of the replay buffer
            continue
        rows = [fast_get(minibatch, name) for minibatch in minibatches]
        stacked[name] = torch.stack(rows) if isinstance(first, Tensor) else _stacked_rows(rows)
    size = [len(minibatches), *minibatches[0].batch_size]
    return unchecked_tensordict(stacked, size, device=minibatches[0].device)


def _with_entries(data: TensorDictBase, more: Mapping[str, Tensor]) -> TensorDict:
    """``data`` with further entries, of any shape."""
    return unchecked_tensordict({**dict(data.items()), **more}, list(data.batch_size), device=data.device)


def _split(entries: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Splits entries ``[S]`` into S dicts of scalars; a scalar entry is in each."""
    columns = {name: value.detach().unbind() if value.ndim else [value] * count for name, value in entries.items()}
    return [{name: column[number] for name, column in columns.items()} for number in range(count)]


class StackedOptimizer:
    """One step of several Adams or RAdams at once, whose parameters are views of parameters ``[S, ...]``.

    Their moments become views of stacked tensors, so each optimizer's state, step counts included, stays current.
    """

    def __init__(self, optimizers: Sequence[Optimizer], whole: Callable[[nn.Parameter], nn.Parameter]) -> None:
        self._optimizers, first = list(optimizers), optimizers[0]
        groups = [
            {**{name: group[name] for name in group if name != "flat"}, "params": [whole(p) for p in group["params"]]}
            for group in first.param_groups
        ]
        self._stacked = _STACKED[type(first)](groups)  # type: ignore[call-arg]
        self._states = [optimizer.state for optimizer in optimizers]
        counts: list[Tensor] = []
        held: list[tuple[list[Any], Any]] = []  # per parameter: the state in each optimizer, and the stacked one
        for position in zip(*[_parameters(optimizer) for optimizer in optimizers], strict=True):
            states = [optimizer.state[p] for optimizer, p in zip(optimizers, position, strict=True)]
            counts += [state["step"] for state in states]
            stacked = {name: torch.stack([s[name] for s in states]) for name in states[0] if name != "step"}
            joint = self._stacked.state[whole(position[0])] = {"step": states[0]["step"].clone(), **stacked}
            held.append((states, joint))
        if isinstance(self._stacked, FlatRAdam):
            self._stacked.flat_moments()  # moves the moments, so before any view of them is taken
        for states, joint in held:
            for name in joint.keys() - {"step"}:
                for state, view in zip(states, joint[name].unbind(), strict=True):
                    state[name].data = view
        self._counts = stack_as_views(counts)
        firsts = [_parameters(optimizer)[0] for optimizer in optimizers]
        self._moments = [(state[p], state[p]["exp_avg"]) for state, p in zip(self._states, firsts, strict=True)]

    @classmethod
    def make(
        cls, optimizers: Sequence[Optimizer], whole: Callable[[nn.Parameter], nn.Parameter]
    ) -> StackedOptimizer | None:
        """A stack of ``optimizers``; None if they differ or have no state yet, so that each must step alone."""
        same_kind = len({type(optimizer) for optimizer in optimizers}) == 1 and _agree(optimizers)
        if not same_kind or type(optimizers[0]) not in _STACKED or any(map(has_step_hooks, optimizers)):
            return None
        counts = {tuple(int(o.state.get(p, {}).get("step", -1)) for p in _parameters(o)) for o in optimizers}
        return cls(optimizers, whole) if len(counts) == 1 and -1 not in counts.pop() else None

    def is_current(self) -> bool:
        """True while all optimizers hold the stacked moments and have the same settings."""
        held = all(o.state is state for o, state in zip(self._optimizers, self._states, strict=True))
        held = held and all(state["exp_avg"] is moment for state, moment in self._moments)  # else one stepped alone
        return held and not any(map(has_step_hooks, self._optimizers)) and _agree(self._optimizers)

    def step(self) -> None:
        """Steps all optimizers."""
        for group, settings in zip(self._stacked.param_groups, self._optimizers[0].param_groups, strict=True):
            group.update((name, settings[name]) for name in _SETTINGS)
        self._stacked.step()
        with torch.no_grad():
            self._counts.add_(1)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _agree(optimizers: Sequence[Optimizer]) -> bool:
    settings = [[[group[name] for name in _SETTINGS] for group in o.param_groups] for o in optimizers]
    return all(other == settings[0] for other in settings)
