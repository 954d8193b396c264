"""Losses and gradients of a minibatch: as PyTorch does it, or forward and backward as one compiled graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import allow_gradients_in_graphs

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


def compiled_gradients(loss: LossModule, parameters: Sequence[nn.Parameter]) -> Gradients:
    """Forward and backward in one compiled graph, equal to :func:`eager_gradients` but for the order of summation.

    Random numbers are those of eager PyTorch, which keeps the code for the next run in ``TORCHINDUCTOR_CACHE_DIR`` (a
    folder of the user's in the temporary one, unless it is set). A loss that has no
    single graph, or a PyTorch whose compiler knows no gradients, has its forward pass alone compiled, which is said.
    """
    forward_alone = eager_gradients(torch.compile(loss), parameters)
    if not allow_gradients_in_graphs():
        return forward_alone

    def graph(minibatch: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        losses = dict(loss(minibatch).items())
        gradients = torch.autograd.grad(total_loss(losses.items()), parameters, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, gradients

    compiled, chosen = torch.compile(graph, fullgraph=True, options={"fallback_random": True}), list[Gradients]()

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
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            print(f"run.compile: no single graph, so the forward pass alone is compiled ({reason}).", file=sys.stderr)
            chosen.append(forward_alone)
            return forward_alone(minibatch)
        chosen.append(in_one_graph)
        return losses

    return compute


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
