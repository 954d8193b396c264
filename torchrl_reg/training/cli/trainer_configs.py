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
import re
from typing import Any

Fields = dict[str, tuple[Any, Any]]

_ALL: Fields = {
    "_target_": (str, "torchrl_reg.objectives.from_config.loss_from_config"),
    "_partial_": (bool, False),
    "reduction": (str | None, "mean"),
    "use_prioritized_weights": (Any, "auto"),
    "diagnostics": (bool, True),
    # Settings of what is made of the loss.
    "gamma": (float | None, None),
    "value_estimator": (str | None, None),
    "keys": (Any, None),
}
_VALUE: Fields = {**_ALL, "value_network": (Any, None), "delay_value": (bool, True)}
_Q_LEARNING: Fields = {**_VALUE, "action_space": (Any, None)}
_DOUBLE: Fields = {**_Q_LEARNING, "double_dqn": (bool, False)}
_SOFT: Fields = {**_DOUBLE, "loss_function": (str | None, None), "tau": (float, 0.03)}
_MUNCHAUSEN: Fields = {"tau": (float, 0.03), "alpha": (float, 0.9), "clip_min": (float | None, -1.0)}
_PRIOR: Fields = {"prior": (Any, None), "beta": (float | None, None)}
_QUANTILES: Fields = {
    **{f"num_{kind}quantiles": (int, number) for kind, number in (("", 64), ("target_", 64), ("policy_", 32))},
    **{"kappa": (float, 1.0), "reuse_quantiles": (bool, False), "share_fractions": (bool, False)},
}
_FOLLOWS_ERROR: Fields = {"beta_scale": (float | None, None), "rate": (float, 0.01), "tau_min": (float, 1e-4)}
_ACTOR_CRITIC: Fields = {
    **_ALL,
    **{"actor_network": (Any, None), "qvalue_network": (Any, None), "tau": (float, 1.0), "loss_function": (str, "l2")},
}
_IMPLICIT: Fields = {
    **{"actor_network": (Any, None), "loss_function": (str, "l2"), "tau": (float, 0.01), "alpha": (float, 0.0)},
    **{"clip_min": (float | None, None), "residual": (bool, False), "target_entropy": (float | None, None)},
    "delay_actor": (bool, True),
}
_PATHS: Fields = {
    **{"actor_network": (Any, None), "delay_value": (bool, False), "tau": (float, 0.1), "lam": (float, 0.0)},
    **{"rollout": (int, 10), "max_kl": (float | None, None)},
}
_ADVANTAGE: Fields = {"loss_function": (str | None, None), "alpha": (float, 0.9), "persistent": (bool, False)}
_VIREL: Fields = {**_FOLLOWS_ERROR, "value_network": (Any, None), "exponent": (float, 2.0), "mode": (str, "td")}
_SAMPLED: Fields = {"num_value_samples": (int, 8), "num_particles": (int, 4)}

#: What the constructor of each loss takes: names, types, defaults.
_FIELDS: dict[str, Fields] = {
    "SoftDQN": _SOFT,
    "MunchausenDQN": {**_SOFT, **_MUNCHAUSEN},
    "SparseDQN": _SOFT,
    "DiscreteVIREL": {**_SOFT, "tau": (float, 1.0), **_FOLLOWS_ERROR},
    "CategoricalDQN": _DOUBLE,
    "MunchausenCategorical": {**_DOUBLE, **_MUNCHAUSEN},
    "QuantileRegressionDQN": {**_DOUBLE, "kappa": (float, 1.0)},
    "AdvantageLearning": {**_Q_LEARNING, **_ADVANTAGE},
    "IQN": {**_DOUBLE, **_QUANTILES},
    "MunchausenIQN": {**_DOUBLE, **_QUANTILES, **_MUNCHAUSEN},
    "MutualInformationDQN": {**_Q_LEARNING, **_PRIOR, "loss_function": (str | None, None)},
    "MutualInformationIQN": {**_DOUBLE, **_QUANTILES, **_PRIOR},
    "VIREL": {**_ACTOR_CRITIC, **_VIREL},
    "SoftActorCritic": {**_ACTOR_CRITIC, "target_entropy": (float | None, None)},
    "SoftQLearning": {**_ACTOR_CRITIC, **_SAMPLED, "proposal": (str, "lattice"), "form": (str, "exact")},
    "ImplicitQ": {**_VALUE, **_IMPLICIT},
    "PathConsistency": {**_VALUE, **_PATHS},
}


def _config(name: str, fields: Fields) -> type:
    settings = {"loss": (str, f"{name}Loss"), **fields}
    made_of = [(key, kind, dataclasses.field(default=default)) for key, (kind, default) in settings.items()]
    return dataclasses.make_dataclass(f"{name}Config", made_of)


#: Names in Hydra's group ``loss``: ``munchausen_dqn`` is :class:`~torchrl_reg.objectives.MunchausenDQNLoss`.
LOSSES: dict[str, Any] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower(): _config(name, fields)
    for name, fields in _FIELDS.items()
}


def register_loss_configs() -> None:
    """Adds :data:`LOSSES` to Hydra's config store; needs the extra ``recipes``."""
    from hydra.core.config_store import ConfigStore

    for name, config in LOSSES.items():
        ConfigStore.instance().store(group="loss", name=name, node=config)
