"""Losses from plain settings: by name, and as configs for TorchRL's trainers (``loss: dqn``).

``register_loss_configs(ConfigStore.instance())`` before ``hydra.main`` adds :data:`LOSSES` to group ``loss``::

    defaults:
      - loss@loss_module: munchausen_dqn
    loss_module:
      tau: 0.03
      gamma: 0.99
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchrl_reg import objectives
from torchrl_reg.objectives.base import RegularizedLoss


def loss_from_config(
    loss: str,
    *,
    gamma: float | None = None,
    value_estimator: str | None = None,
    keys: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> RegularizedLoss:
    """The loss of that name, with its keys set and its value estimator built.

    Args:
        loss: a name in ``torchrl_reg.objectives``, such as ``"MunchausenDQNLoss"``.
        gamma: discount; None is the loss's default.
        value_estimator: its name, such as ``"td0"``; None is the loss's default.
        keys: for ``set_keys``; a list of names is a nested key.
        **arguments: for the constructor. A network given as a factory (Hydra's ``_partial_: true``) is called.

    Raises:
        ValueError: no loss of that name.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> settings = {"tau": 0.5, "gamma": 0.9, "keys": {"reward": ["r", "x"]}}
    >>> loss = loss_from_config("MunchausenDQNLoss", value_network=actor, **settings)
    >>> type(loss).__name__, loss.tensor_keys.reward
    ('MunchausenDQNLoss', ('r', 'x'))
    """
    cls = getattr(objectives, loss, None) if loss in objectives.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, RegularizedLoss)):
        known = [n for n in objectives.__all__ if n.endswith("Loss")]
        raise ValueError(f"loss must be one of {', '.join(known)}, got {loss!r}.")
    for name in ("value_network", "actor_network", "qvalue_network", "prior_network"):
        network: Any = arguments.get(name)
        if isinstance(network, Sequence):  # critics
            arguments[name] = [_as_network(each) for each in network]
        elif network is not None:
            arguments[name] = _as_network(network)
    loss_module = cls(**arguments)
    if keys:
        loss_module.set_keys(**{name: _nested(key) for name, key in keys.items()})
    if gamma is not None or value_estimator is not None:
        loss_module.make_value_estimator(value_estimator, **({} if gamma is None else {"gamma": gamma}))
    return loss_module


def _as_network(network: Any) -> Any:
    return network() if hasattr(network, "func") else network  # a functools.partial of its constructor


def _nested(key: Any) -> Any:
    return key if isinstance(key, str) or not isinstance(key, Sequence) else tuple(key)


#: Settings besides the arguments of a constructor, with their defaults.
_COMMON = {"gamma": None, "value_estimator": None, "keys": None}
#: Slots that the named losses fill.
_FILLED = {"regularizer", "shaping", "head"}


def _arguments(kind: type) -> dict[str, Any]:
    """Arguments of its constructor with their defaults, None for networks; ``**kwargs`` go to the next class."""
    found: dict[str, Any] = {}
    for cls in kind.__mro__:
        if "__init__" in vars(cls):
            taken = inspect.signature(vars(cls)["__init__"]).parameters.values()
            own = {each.name: each.default for each in taken if each.default is not each.empty}
            found = dict.fromkeys(each.name for each in taken if each.name.endswith("_network")) | own | found
            if all(each.kind is not each.VAR_KEYWORD for each in taken):
                break
    return {name: value for name, value in found.items() if name not in _FILLED}


def _config(name: str) -> type:
    loss: Any = getattr(objectives, name)
    own = _arguments(loss) | (_arguments(loss.head_type) if getattr(loss, "head_type", None) else {})
    settings = {"_target_": "torchrl_reg.objectives.trainer_configs.loss_from_config", "_partial_": False, "loss": name}
    fields = [(key, Any, dataclasses.field(default=value)) for key, value in (settings | own | _COMMON).items()]
    return dataclasses.make_dataclass(f"{name.removesuffix('Loss')}Config", fields)


#: Names in Hydra's group ``loss``: ``munchausen_dqn`` is :class:`~torchrl_reg.objectives.MunchausenDQNLoss`.
LOSSES: dict[str, Any] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.removesuffix("Loss")).lower(): _config(name)
    for name in objectives.__all__
    if name.endswith("Loss") and name not in ("QLearningLoss", "RegularizedLoss")
}


def register_loss_configs(store: Any) -> None:
    """Adds :data:`LOSSES` to ``store``, which is Hydra's ``ConfigStore.instance()``."""
    for name, config in LOSSES.items():
        store.store(group="loss", name=name, node=config)
