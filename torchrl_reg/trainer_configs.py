"""Hydra configs of our losses, so that TorchRL's trainers take them from YAML as they take ``loss: dqn``.

``register_loss_configs()`` before ``hydra.main`` adds group ``loss`` the names of :data:`LOSSES`::

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
from typing import Any

from torchrl_reg import objectives

#: Of what is made of a loss, beside its own arguments.
_BESIDE = {"gamma": None, "value_estimator": None, "keys": None}
#: Slots, which the names of the losses fill.
_FILLED = {"regularizer", "shaping", "head"}


def _arguments(made: type) -> dict[str, Any]:
    """What its constructor takes, and the defaults, None of networks; ``**kwargs`` are what the next class takes."""
    found: dict[str, Any] = {}
    for cls in made.__mro__:
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
    settings = {"_target_": "torchrl_reg.objectives.from_config.loss_from_config", "_partial_": False, "loss": name}
    fields = [(key, Any, dataclasses.field(default=value)) for key, value in (settings | own | _BESIDE).items()]
    return dataclasses.make_dataclass(f"{name.removesuffix('Loss')}Config", fields)


#: Names in Hydra's group ``loss``: ``munchausen_dqn`` is :class:`~torchrl_reg.objectives.MunchausenDQNLoss`.
LOSSES: dict[str, Any] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.removesuffix("Loss")).lower(): _config(name)
    for name in objectives.__all__
    if name.endswith("Loss") and name not in ("QLearningLoss", "RegularizedLoss")
}


def register_loss_configs() -> None:
    """Adds :data:`LOSSES` to Hydra's config store; needs the extra ``recipes``."""
    from hydra.core.config_store import ConfigStore

    for name, config in LOSSES.items():
        ConfigStore.instance().store(group="loss", name=name, node=config)
