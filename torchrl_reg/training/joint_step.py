"""One gradient step for all lanes, where their losses can be stacked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import unchecked_tensordict
from torchrl_reg.training.gradients import made_gradients
from torchrl_reg.training.lanes import Lane
from torchrl_reg.training.optimizer_step import OptimizerStep, StackedStep

Step = Callable[[TensorDictBase], Any]


class _Share(NamedTuple):
    """What one lane brings."""

    loss: Any
    parameters: Sequence[nn.Parameter]
    optimizer: OptimizerStep
    minibatch: TensorDictBase


def joint_step(
    lane: Lane,
    alone: Step,
    *,
    loss: LossModule,
    parameters: Sequence[nn.Parameter],
    optimizer: OptimizerStep,
    compile: bool | None,
) -> Step:
    """``alone``, or the same for all lanes at once where their losses can be stacked (``loss.stacked_with``).

    It returns detached scalars, equal to those of ``alone`` but for the order of summation.
    """
    together = lane.shared("gradient step", lambda: _Together(lane, compile))
    check = getattr(loss, "check_data", lambda _: None)

    def step(minibatch: TensorDictBase) -> Any:
        if together.refused or lane.is_alone:
            return alone(minibatch)
        check(minibatch)
        kind = ("gradient step", getattr(loss, "diagnostics", None))
        scalars = lane.meet(kind, _Share(loss, parameters, optimizer, minibatch), together, brief=True)
        return alone(minibatch) if scalars is None else scalars

    return step


class _Together:
    """Steps for the lanes that meet; holds the stack of their losses while they stay the same."""

    def __init__(self, lane: Lane, compile: bool | None) -> None:
        self.refused = False
        self._lane = lane  # any: it knows how many there are
        self._compile = compile
        self._losses: list[Any] = []
        self._stack: Any = None
        self._optimizer: StackedStep | None = None

    def __call__(self, shares: list[_Share]) -> Sequence[Mapping[str, Tensor] | None]:
        """The scalars of each; None for those that have to step alone."""
        losses = [share.loss for share in shares]
        if len(losses) < self._lane.companions or not self._is_stack_of(losses, shares[0].parameters):
            return [None] * len(shares)
        # Toggled between updates, as the lanes toggle theirs.
        self._stack.loss.diagnostics = losses[0].diagnostics
        entries = self._gradients(_stacked_rows([share.minibatch for share in shares]))
        self._share_gradients(shares)
        self._step([share.optimizer for share in shares])
        return _of_each(entries, len(shares))

    def _is_stack_of(self, losses: list[Any], parameters: Sequence[nn.Parameter]) -> bool:
        """Whether there is a stack of ``losses``, made now if need be."""
        same = len(losses) == len(self._losses) and all(map(lambda a, b: a is b, losses, self._losses))
        if same and self._stack.is_current():
            return True
        try:
            if not hasattr(losses[0], "stacked_with"):
                raise ValueError(f"loss must have a stacked form, got a {type(losses[0]).__name__}.")
            self._stack = losses[0].stacked_with(losses[1:])
            self._parameters = [self._stack.parameter(parameter) for parameter in parameters]
        except ValueError as error:
            self.refused = True
            print(f"run.seeds: each seed is updated by itself: {error}", file=sys.stderr, flush=True)
            return False
        self._losses, self._gradients = losses, made_gradients(self._stack.loss, self._parameters, self._compile)
        self._optimizer = None
        return True

    def _share_gradients(self, shares: list[_Share]) -> None:
        for position, whole in enumerate(self._parameters):
            assert whole.grad is not None
            for share, gradient in zip(shares, whole.grad.unbind(), strict=True):
                share.parameters[position].grad = gradient

    def _step(self, optimizers: list[OptimizerStep]) -> None:
        if self._optimizer is not None and self._optimizer.is_current():
            self._optimizer()
            return
        for optimizer in optimizers:
            optimizer()
        self._optimizer = StackedStep.of(optimizers, self._stack.parameter)


def _stacked_rows(minibatches: list[TensorDictBase]) -> TensorDict:
    """``[S, B]`` out of S minibatches ``[B]``."""
    stacked: dict[Any, Any] = {}
    for name, first in minibatches[0].items():
        if name == "index":  # where it lay in the replay buffer
            continue
        rows = [minibatch.get(name) for minibatch in minibatches]
        stacked[name] = torch.stack(rows) if isinstance(first, Tensor) else _stacked_rows(rows)
    size = [len(minibatches), *minibatches[0].batch_size]
    return unchecked_tensordict(stacked, size, device=minibatches[0].device)


def _of_each(entries: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Entries ``[S]`` as S dicts of scalars; a scalar is the same for all."""
    columns = {name: value.detach().unbind() if value.ndim else [value] * count for name, value in entries.items()}
    return [{name: column[number] for name, column in columns.items()} for number in range(count)]
