"""Hydra configs of our losses, so that TorchRL's trainers take them from YAML as they take ``loss: dqn``.

``register_loss_configs()`` before ``hydra.main`` adds group ``loss`` the names of :data:`LOSSES`::

    defaults:
      - loss@loss_module: munchausen_dqn
    loss_module:
      tau: 0.03
      gamma: 0.99
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_BUILD = "torchrl_reg.objectives.from_config.loss_from_config"


@dataclass
class LossConfig:
    """What all losses take; ``gamma``, ``value_estimator`` and ``keys`` are settings of what is made of them."""

    _target_: str = _BUILD
    _partial_: bool = False
    reduction: str | None = "mean"
    use_prioritized_weights: Any = "auto"
    diagnostics: bool = True
    gamma: float | None = None
    value_estimator: str | None = None
    keys: Any = None


@dataclass
class ValueConfig(LossConfig):
    """What losses of a value network take."""

    value_network: Any = None
    delay_value: bool = True


@dataclass
class QLearningConfig(ValueConfig):
    """What losses of the values of a few actions take."""

    action_space: Any = None


@dataclass
class MunchausenConfig:
    """What Munchausen losses take in addition."""

    tau: float = 0.03
    alpha: float = 0.9
    clip_min: float | None = -1.0


@dataclass
class MutualInformationConfig:
    """What losses with a learnt action prior take in addition."""

    prior: Any = None
    beta: float | None = None


@dataclass
class SoftDQNConfig(QLearningConfig):
    """:class:`~torchrl_reg.objectives.SoftDQNLoss`."""

    loss: str = "SoftDQNLoss"
    loss_function: str | None = None
    double_dqn: bool = False
    tau: float = 0.03


@dataclass
class MunchausenDQNConfig(MunchausenConfig, SoftDQNConfig):
    """:class:`~torchrl_reg.objectives.MunchausenDQNLoss`."""

    loss: str = "MunchausenDQNLoss"


@dataclass
class SparseDQNConfig(SoftDQNConfig):
    """:class:`~torchrl_reg.objectives.SparseDQNLoss`."""

    loss: str = "SparseDQNLoss"


@dataclass
class DiscreteVIRELConfig(SoftDQNConfig):
    """:class:`~torchrl_reg.objectives.DiscreteVIRELLoss`."""

    loss: str = "DiscreteVIRELLoss"
    tau: float = 1.0
    beta_scale: float | None = None
    rate: float = 0.01
    tau_min: float = 1e-4


@dataclass
class CategoricalDQNConfig(QLearningConfig):
    """:class:`~torchrl_reg.objectives.CategoricalDQNLoss`."""

    loss: str = "CategoricalDQNLoss"
    double_dqn: bool = False


@dataclass
class MunchausenCategoricalConfig(MunchausenConfig, CategoricalDQNConfig):
    """:class:`~torchrl_reg.objectives.MunchausenCategoricalLoss`."""

    loss: str = "MunchausenCategoricalLoss"


@dataclass
class QuantileRegressionDQNConfig(CategoricalDQNConfig):
    """:class:`~torchrl_reg.objectives.QuantileRegressionDQNLoss`."""

    loss: str = "QuantileRegressionDQNLoss"
    kappa: float = 1.0


@dataclass
class AdvantageLearningConfig(QLearningConfig):
    """:class:`~torchrl_reg.objectives.AdvantageLearningLoss`."""

    loss: str = "AdvantageLearningLoss"
    loss_function: str | None = None
    alpha: float = 0.9
    persistent: bool = False


@dataclass
class IQNConfig(QLearningConfig):
    """:class:`~torchrl_reg.objectives.IQNLoss`."""

    loss: str = "IQNLoss"
    num_quantiles: int = 64
    num_target_quantiles: int = 64
    num_policy_quantiles: int = 32
    kappa: float = 1.0
    double_dqn: bool = False
    reuse_quantiles: bool = False
    share_fractions: bool = False


@dataclass
class MunchausenIQNConfig(MunchausenConfig, IQNConfig):
    """:class:`~torchrl_reg.objectives.MunchausenIQNLoss`."""

    loss: str = "MunchausenIQNLoss"


@dataclass
class MutualInformationDQNConfig(MutualInformationConfig, QLearningConfig):
    """:class:`~torchrl_reg.objectives.MutualInformationDQNLoss`."""

    loss: str = "MutualInformationDQNLoss"
    loss_function: str | None = None


@dataclass
class MutualInformationIQNConfig(MutualInformationConfig, IQNConfig):
    """:class:`~torchrl_reg.objectives.MutualInformationIQNLoss`."""

    loss: str = "MutualInformationIQNLoss"


@dataclass
class ActorCriticConfig(LossConfig):
    """What the actor-critics take."""

    actor_network: Any = None
    qvalue_network: Any = None
    tau: float = 1.0
    loss_function: str = "l2"


@dataclass
class VIRELConfig(ActorCriticConfig):
    """:class:`~torchrl_reg.objectives.VIRELLoss`."""

    loss: str = "VIRELLoss"
    value_network: Any = None
    beta_scale: float | None = None
    exponent: float = 2.0
    rate: float = 0.01
    tau_min: float = 1e-4
    mode: str = "td"


@dataclass
class SoftActorCriticConfig(ActorCriticConfig):
    """:class:`~torchrl_reg.objectives.SoftActorCriticLoss`."""

    loss: str = "SoftActorCriticLoss"
    target_entropy: float | None = None


@dataclass
class SoftQLearningConfig(ActorCriticConfig):
    """:class:`~torchrl_reg.objectives.SoftQLearningLoss`."""

    loss: str = "SoftQLearningLoss"
    num_value_samples: int = 8
    num_particles: int = 4
    proposal: str = "lattice"
    form: str = "exact"


@dataclass
class ImplicitQConfig(ValueConfig):
    """:class:`~torchrl_reg.objectives.ImplicitQLoss`."""

    loss: str = "ImplicitQLoss"
    actor_network: Any = None
    loss_function: str = "l2"
    tau: float = 0.01
    alpha: float = 0.0
    clip_min: float | None = None
    residual: bool = False
    target_entropy: float | None = None
    delay_actor: bool = True


@dataclass
class PathConsistencyConfig(ValueConfig):
    """:class:`~torchrl_reg.objectives.PathConsistencyLoss`."""

    loss: str = "PathConsistencyLoss"
    actor_network: Any = None
    delay_value: bool = False
    tau: float = 0.1
    lam: float = 0.0
    rollout: int = 10
    max_kl: float | None = None


#: Names in Hydra's group ``loss``.
LOSSES: dict[str, type[LossConfig]] = {
    "soft_dqn": SoftDQNConfig,
    "munchausen_dqn": MunchausenDQNConfig,
    "sparse_dqn": SparseDQNConfig,
    "discrete_virel": DiscreteVIRELConfig,
    "categorical_dqn": CategoricalDQNConfig,
    "munchausen_categorical": MunchausenCategoricalConfig,
    "quantile_regression_dqn": QuantileRegressionDQNConfig,
    "advantage_learning": AdvantageLearningConfig,
    "iqn": IQNConfig,
    "munchausen_iqn": MunchausenIQNConfig,
    "mutual_information_dqn": MutualInformationDQNConfig,
    "mutual_information_iqn": MutualInformationIQNConfig,
    "virel": VIRELConfig,
    "soft_actor_critic": SoftActorCriticConfig,
    "soft_q_learning": SoftQLearningConfig,
    "implicit_q": ImplicitQConfig,
    "path_consistency": PathConsistencyConfig,
}


def register_loss_configs() -> None:
    """Add :data:`LOSSES` to Hydra's config store; needs the extra ``recipes``."""
    from hydra.core.config_store import ConfigStore

    for name, config in LOSSES.items():
        ConfigStore.instance().store(group="loss", name=name, node=config)
