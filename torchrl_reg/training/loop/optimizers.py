"""Optimizers by name, as ``algo.optimizer`` of a recipe names them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Adam, Optimizer, RAdam, RMSprop

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
        return RAdam(parameters, foreach=True, **shared)
    if name == "rmsprop":
        return RMSprop(parameters, alpha=decay, centered=True, foreach=True, **shared)
    raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")
