"""Losses and gradients of a minibatch: as PyTorch does it, or forward and backward as one compiled graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import allow_gradients_in_graphs

#: Updates from which on a compiled graph of a fully connected network saves more time than compiling it takes.
MANY_UPDATES = 100_000
#: Minibatch in, entries of the loss out; the gradients of their sum are then in ``parameter.grad``.
Gradients: TypeAlias = Callable[[TensorDictBase], Mapping[str, Tensor]]


def eager_gradients(loss: Callable[[TensorDictBase], TensorDictBase], parameters: Sequence[nn.Parameter]) -> Gradients:
    """Forward, then ``backward()``."""

    def compute(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        losses = dict(loss(minibatch).items())
        for parameter in parameters:
            parameter.grad = None
        total_loss(losses.items()).backward()
        return losses

    return compute


def compiled_gradients(loss: LossModule, parameters: Sequence[nn.Parameter], *, asked_for: bool = True) -> Gradients:
    """Forward and backward in one compiled graph, equal to :func:`eager_gradients` but for the order of summation.

    Random numbers are those of eager PyTorch, which keeps the code for the next run in ``TORCHINDUCTOR_CACHE_DIR`` (a
    folder of the user's in the temporary one, unless it is set). A loss that has no
    single graph, or a PyTorch whose compiler knows no gradients, has its forward pass alone compiled, which is said.
    If nobody ``asked_for`` it, such a loss, and any on a machine that cannot compile, is left as it is.
    """
    otherwise = eager_gradients(torch.compile(loss) if asked_for else loss, parameters)
    if not allow_gradients_in_graphs():
        return otherwise

    def graph(minibatch: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        losses = dict(loss(minibatch).items())
        gradients = torch.autograd.grad(total_loss(losses.items()), parameters, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, gradients

    compiled, chosen = torch.compile(graph, fullgraph=True, options={"fallback_random": True}), list[Gradients]()

    failures: type[Exception] = torch._dynamo.exc.TorchDynamoException if asked_for else Exception
    # No graph has the checks of the data; and an eager first pass would be one that an uninterrupted run has not.
    check = getattr(loss, "check_data", lambda _: None)

    def in_one_graph(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        check(minibatch)
        losses, gradients = compiled(minibatch)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return losses

    def compute(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        if chosen:
            return chosen[0](minibatch)
        try:
            losses = in_one_graph(minibatch)
        except failures as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            done = "the forward pass alone is compiled" if asked_for else "nothing is compiled"
            print(f"run.compile: no single graph, so {done} ({reason}).", file=sys.stderr)
            chosen.append(otherwise)
            return otherwise(minibatch)
        chosen.append(in_one_graph)
        return losses

    return compute


def made_gradients(loss: Any, parameters: Sequence[nn.Parameter], compile: bool | None) -> Gradients:
    """Compiled or not; None: compiled, though nobody asked for it."""
    if compile is False:
        return eager_gradients(loss, parameters)
    return compiled_gradients(loss, parameters, asked_for=compile is True)


def worth_compiling(loss: LossModule, updates: int | None, device: torch.device) -> bool:
    """Whether a compiled graph takes less time over so many ``updates`` than it takes to compile (20 to 60 s).

    It does on a CPU for networks without convolutions, whose updates take some 0.5 ms less, from :data:`MANY_UPDATES`
    on. Convolutions gain nothing there, and GPUs have not been measured.
    """
    convolutions = any(parameter.ndim >= 4 for parameter in loss.parameters())
    return device.type == "cpu" and updates is not None and updates >= MANY_UPDATES and not convolutions


def total_loss(losses: Iterable[tuple[str, Tensor]]) -> Tensor:
    """The sum of the entries whose name starts with ``loss``, and of their elements (a stack of losses has several).

    Raises:
        ValueError: there is none.
    """
    terms = [value for name, value in losses if name.startswith("loss")]
    if not terms:
        raise ValueError("loss must return an entry whose name starts with 'loss', got none.")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.sum() if total.ndim else total
