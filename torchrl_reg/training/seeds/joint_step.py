"""One gradient step for all lanes, if their losses can be stacked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import entry, unchecked_tensordict
from torchrl_reg.training.loop.gradients import made_gradients
from torchrl_reg.training.loop.optimizer_step import OptimizerStep, StackedStep
from torchrl_reg.training.seeds.lanes import Lane

Step = Callable[[TensorDictBase], Any]


class _Share(NamedTuple):
    """What one lane contributes."""

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
    bf16: bool = False,
) -> Step:
    """``alone``, or the same step for all lanes at once if their losses can be stacked (``loss.stacked_with``).

    It returns detached scalars, equal to those of ``alone`` up to the order of summation.
    """
    together = lane.shared("gradient step", lambda: _Together(lane, compile, bf16))
    check = getattr(loss, "check_data", lambda _: None)

    def step(minibatch: TensorDictBase) -> Any:
        if together.refused or lane.is_alone:
            return alone(minibatch)
        check(minibatch)
        kind = ("gradient step", getattr(loss, "diagnostics", None))
        scalars = lane.meet(kind, _Share(loss, parameters, optimizer, minibatch), together, brief=True)
        return alone(minibatch) if scalars is None else scalars

    lane.prepare = lambda: lane.meet("stack", (loss, parameters), together.prepare)
    return step


class _Together:
    """Steps for the lanes that meet; keeps the stack of their losses as long as they stay the same."""

    def __init__(self, lane: Lane, compile: bool | None, bf16: bool) -> None:
        self.refused = False
        self._lane = lane  # any lane will do: each knows how many there are
        self._compile, self._bf16 = compile, bf16
        self._losses: list[Any] = []
        self._stack: Any = None
        self._optimizer: StackedStep | None = None
        self._gathered: list[Tensor] = []  # gradients [S, ...]
        self._firsts: list[Tensor | None] = []  # that of each lane's first parameter

    def __call__(self, shares: list[_Share]) -> Sequence[Mapping[str, Tensor] | None]:
        """The scalars of each lane; None for those that must step on their own."""
        losses = [share.loss for share in shares]
        if len(losses) < self._lane.companions or not self._is_stack_of(losses, shares[0].parameters):
            return [None] * len(shares)
        # The lanes toggle theirs between updates.
        self._stack.loss.diagnostics = losses[0].diagnostics
        entries = self._gradients(_stacked_rows([share.minibatch for share in shares]))
        self._share_gradients(shares)
        self._step([share.optimizer for share in shares])
        return _of_each(entries, len(shares))

    def prepare(self, shares: Sequence[tuple[Any, Sequence[nn.Parameter]]]) -> Sequence[None]:
        """Stacks the losses of all lanes, each given with its parameters, before any has stepped."""
        if not (self.refused or self._lane.is_alone) and len(shares) == self._lane.companions:
            self._is_stack_of([loss for loss, _ in shares], shares[0][1])
        return [None] * len(shares)

    def _is_stack_of(self, losses: list[Any], parameters: Sequence[nn.Parameter]) -> bool:
        """Whether there is a stack of ``losses``, built now if necessary."""
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
            print(f"run.seeds: each seed is updated separately: {error}", file=sys.stderr, flush=True)
            return False
        self._losses = losses
        self._gradients = made_gradients(self._stack.loss, self._parameters, self._compile, bf16=self._bf16)
        self._optimizer = None
        return True

    def _share_gradients(self, shares: list[_Share]) -> None:
        """Copies them to where the gradients of each lane's parameters lie side by side."""
        firsts = [share.parameters[0].grad for share in shares]
        if len(firsts) != len(self._firsts) or any(map(lambda a, b: a is not b, firsts, self._firsts)):
            self._gathered = [torch.empty_like(whole) for whole in self._parameters]
            for position, gathered in enumerate(self._gathered):
                for share, gradient in zip(shares, gathered.unbind(), strict=True):
                    share.parameters[position].grad = gradient
            self._firsts = [share.parameters[0].grad for share in shares]
        torch._foreach_copy_(self._gathered, [whole.grad for whole in self._parameters])  # type: ignore[misc]

    def _step(self, optimizers: list[OptimizerStep]) -> None:
        if self._optimizer is None or not self._optimizer.is_current():
            self._optimizer = StackedStep.of(optimizers, self._stack.parameter)
        for step in optimizers if self._optimizer is None else [self._optimizer]:
            step()


def _stacked_rows(minibatches: list[TensorDictBase]) -> TensorDict:
    """``[S, B]`` from S minibatches ``[B]``."""
    stacked: dict[Any, Any] = {}
    for name, first in minibatches[0].items():
        if name == "index":  # its place in the replay buffer
            continue
        rows = [entry(minibatch, name) for minibatch in minibatches]
        stacked[name] = torch.stack(rows) if isinstance(first, Tensor) else _stacked_rows(rows)
    size = [len(minibatches), *minibatches[0].batch_size]
    return unchecked_tensordict(stacked, size, device=minibatches[0].device)


def _of_each(entries: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Splits entries ``[S]`` into S dicts of scalars; a scalar entry goes to all."""
    columns = {name: value.detach().unbind() if value.ndim else [value] * count for name, value in entries.items()}
    return [{name: column[number] for name, column in columns.items()} for number in range(count)]
