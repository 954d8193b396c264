"""Losses and gradients of a minibatch: in eager PyTorch, or forward and backward as one compiled graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_reg.torchrl_compat import allow_gradients_in_graphs, backward

#: Number of updates beyond which compiling a fully connected network saves more time than it takes.
MANY_UPDATES = 100_000
#: Minibatch in, entries of the loss out; the gradients of their sum are then in ``parameter.grad``.
Gradients: TypeAlias = Callable[[TensorDictBase], Mapping[str, Tensor]]


def eager_gradients(
    loss: Callable[[TensorDictBase], TensorDictBase], parameters: Sequence[nn.Parameter], *, bf16: bool = False
) -> Gradients:
    """Forward, then ``backward()``."""

    def compute(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        with _precision(bf16, minibatch):
            losses = dict(loss(minibatch).items())
        for parameter in parameters:
            parameter.grad = None
        backward(total_loss(losses.items()))
        return losses

    return compute


def compiled_gradients(
    loss: LossModule, parameters: Sequence[nn.Parameter], *, asked_for: bool = True, bf16: bool = False
) -> Gradients:
    """Forward and backward in one compiled graph, equal to :func:`eager_gradients` up to the order of summation.

    Random numbers are those of eager PyTorch. Compiled code is kept for the next run in ``TORCHINDUCTOR_CACHE_DIR``
    (default: a per-user folder in the temporary one). If the loss has graph breaks, or PyTorch cannot compile
    gradients, only the forward pass is compiled, with a message. If nobody ``asked_for`` it, such a loss, or any loss
    on a machine that cannot compile, is left as it is.
    """
    otherwise = eager_gradients(torch.compile(loss) if asked_for else loss, parameters, bf16=bf16)
    if not allow_gradients_in_graphs():
        return otherwise

    def graph(minibatch: TensorDictBase) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        with _precision(bf16, minibatch):
            losses = dict(loss(minibatch).items())
        gradients = torch.autograd.grad(total_loss(losses.items()), parameters, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, gradients

    compiled, chosen = torch.compile(graph, fullgraph=True, options={"fallback_random": True}), list[Gradients]()

    failures: type[Exception] = torch._dynamo.exc.TorchDynamoException if asked_for else Exception
    # Graphs hold no data checks; and a resumed run must not make an eager first pass that an uninterrupted one lacks.
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
            done = "only the forward pass is compiled" if asked_for else "nothing is compiled"
            print(f"run.compile: no single graph, so {done} ({reason}).", file=sys.stderr)
            chosen.append(otherwise)
            return otherwise(minibatch)
        chosen.append(in_one_graph)
        return losses

    return compute


def made_gradients(
    loss: Any, parameters: Sequence[nn.Parameter], compile: bool | None, *, bf16: bool = False
) -> Gradients:
    """Gradients, compiled unless ``compile`` is False; None: compiled, though nobody asked for it."""
    if compile is False:
        return eager_gradients(loss, parameters, bf16=bf16)
    return compiled_gradients(loss, parameters, asked_for=compile is True, bf16=bf16)


def _precision(bf16: bool, minibatch: TensorDictBase) -> AbstractContextManager[Any]:
    """In bfloat16 the networks compute; what the losses make of their outputs is float32, as are all parameters."""
    if not bf16:
        return nullcontext()
    return torch.autocast("cpu" if minibatch.device is None else minibatch.device.type, torch.bfloat16)


def worth_compiling(loss: LossModule, updates: int | None, device: torch.device) -> bool:
    """Whether a compiled graph saves more time over ``updates`` updates than compiling takes (20 to 60 s).

    It does on a CPU for networks without convolutions, whose updates take about 0.5 ms less, from
    :data:`MANY_UPDATES` on. Convolutions gain nothing there; GPUs have not been measured.
    """
    convolutions = any(parameter.ndim >= 4 for parameter in loss.parameters())
    return device.type == "cpu" and updates is not None and updates >= MANY_UPDATES and not convolutions


def total_loss(losses: Iterable[tuple[str, Tensor]]) -> Tensor:
    """The sum over all elements of the entries whose name starts with ``loss`` (stacked losses have several each).

    Raises:
        ValueError: there is no such entry.
    """
    terms = [value for name, value in losses if name.startswith("loss")]
    if not terms:
        raise ValueError("loss must return an entry whose name starts with 'loss', got none.")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.sum() if total.ndim else total
