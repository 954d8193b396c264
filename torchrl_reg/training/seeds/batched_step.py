"""One gradient step for all seeds, if their losses can be stacked.

Shapes: ``S`` seeds, ``B`` rows of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import entry, unchecked_tensordict
from torchrl_reg.training.loop.gradients import made_gradients
from torchrl_reg.training.seeds.shared_stack import shared_stack
from torchrl_reg.training.seeds.stacked_optimizer import StackedOptimizer
from torchrl_reg.training.seeds.workers import Worker

Step = Callable[[TensorDictBase], Any]


class _Share(NamedTuple):
    """A worker's part of a batched step."""

    loss: Any
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    minibatch: TensorDictBase


def batched_step(
    worker: Worker,
    alone: Step,
    *,
    loss: LossModule,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None = None,
    compile: bool | None,
    bf16: bool = False,
) -> Step:
    """``alone``, or the same step for all workers at once if their losses can be stacked (``loss.stacked_with``).

    It returns detached scalars, equal to those of ``alone`` up to the order of summation.
    """
    stack = shared_stack(worker)
    batched = worker.shared("gradient step", lambda: _BatchedStep(worker, max_grad_norm, compile, bf16))
    check = getattr(loss, "check_data", lambda _: None)

    def step(minibatch: TensorDictBase) -> Any:
        if stack.refused or worker.companions == 1:
            return alone(minibatch)
        check(minibatch)
        kind = ("gradient step", getattr(loss, "diagnostics", None))
        scalars = worker.barrier(kind, _Share(loss, parameters, optimizer, minibatch), batched, brief=True)
        return alone(minibatch) if scalars is None else scalars

    def stack_all(losses: list[LossModule]) -> list[None]:
        if not stack.refused and 1 < len(losses) == worker.companions:
            stack.holds(losses)
        return [None] * len(losses)

    worker.prepare = lambda: worker.barrier("stack", loss, stack_all)
    return step


class _BatchedStep:
    """Steps for all workers; they step on their own while some are at another kind of update."""

    def __init__(self, worker: Worker, max_grad_norm: float | None, compile: bool | None, bf16: bool) -> None:
        self._worker, self._stack = worker, shared_stack(worker)  # any worker will do: each knows how many there are
        self._max_grad_norm, self._compile, self._bf16 = max_grad_norm, compile, bf16
        self._stacked: Any = None  # of which the gradients are
        self._optimizer: StackedOptimizer | None = None
        self._shared: list[Tensor] = []  # gradients [S, ...], of which the workers' own are views
        self._firsts: list[Tensor | None] = []  # that of each worker's first parameter

    def __call__(self, shares: list[_Share]) -> Sequence[Mapping[str, Tensor] | None]:
        """The scalars of each worker; None for those that must step on their own."""
        losses = [share.loss for share in shares]
        if len(shares) < self._worker.companions or not self._stack.holds(losses):
            return [None] * len(shares)
        stacked = self._stack.stacked
        if stacked is not self._stacked:
            try:
                self._parameters = [stacked.parameter(parameter) for parameter in shares[0].parameters]
            except ValueError as error:
                self._stack.refuse(error)
                return [None] * len(shares)
            self._gradients = made_gradients(stacked.loss, self._parameters, self._compile, bf16=self._bf16)
            self._stacked, self._optimizer = stacked, None
        stacked.loss.diagnostics = losses[0].diagnostics  # the workers toggle theirs between updates
        entries = self._gradients(_stacked_rows([share.minibatch for share in shares]))
        if self._max_grad_norm is not None:
            entries = {**entries, "grad_norm": self._clip(self._max_grad_norm)}
        self._share_gradients(shares)
        self._step([share.optimizer for share in shares])
        return _of_each(entries, len(shares))

    def _clip(self, max_norm: float) -> Tensor:
        """Scales the gradients of each worker to the norm ``max_norm`` at most; the norms ``[S]`` before that."""
        gradients = [whole.grad for whole in self._parameters]
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)  # type: ignore[union-attr]
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))  # type: ignore[union-attr]
        return norms

    def _share_gradients(self, shares: list[_Share]) -> None:
        """Copies the gradients to where those of each worker's parameters lie side by side."""
        firsts = [share.parameters[0].grad for share in shares]
        if len(firsts) != len(self._firsts) or any(a is not b for a, b in zip(firsts, self._firsts, strict=True)):
            self._shared = [torch.empty_like(whole) for whole in self._parameters]
            for position, shared in enumerate(self._shared):
                for share, gradient in zip(shares, shared.unbind(), strict=True):
                    share.parameters[position].grad = gradient
            self._firsts = [share.parameters[0].grad for share in shares]
        torch._foreach_copy_(self._shared, [whole.grad for whole in self._parameters])  # type: ignore[misc]

    def _step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        if self._optimizer is None or not self._optimizer.is_current():
            self._optimizer = StackedOptimizer.of(optimizers, self._stacked.parameter)
        for optimizer in optimizers if self._optimizer is None else [self._optimizer]:
            optimizer.step()


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
