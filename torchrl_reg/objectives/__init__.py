"""Loss modules of regularized RL, for TorchRL's collectors, buffers and trainers."""

from torchrl_reg.objectives.distributional import (
    CategoricalDQNLoss,
    IQNLoss,
    MunchausenCategoricalLoss,
    MunchausenIQNLoss,
    QuantileRegressionDQNLoss,
)
from torchrl_reg.objectives.dqn import (
    AdvantageLearningLoss,
    DiscreteVIRELLoss,
    MunchausenDQNLoss,
    SoftDQNLoss,
    SparseDQNLoss,
)
from torchrl_reg.objectives.implicit_q import ImplicitQLoss
from torchrl_reg.objectives.mutual_information import MutualInformationDQNLoss, MutualInformationIQNLoss
from torchrl_reg.objectives.path_consistency import PathConsistencyLoss
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.sac import SoftActorCriticLoss
from torchrl_reg.objectives.shaping import AdvantageGap, Munchausen, Shaping
from torchrl_reg.objectives.soft_q_learning import SoftQLearningLoss
from torchrl_reg.objectives.target_update import HardTargetUpdate, PolyakTargetUpdate
from torchrl_reg.objectives.virel import VIRELLoss

__all__ = [
    "AdvantageGap",
    "AdvantageLearningLoss",
    "CategoricalDQNLoss",
    "DiscreteVIRELLoss",
    "HardTargetUpdate",
    "IQNLoss",
    "ImplicitQLoss",
    "Munchausen",
    "MunchausenCategoricalLoss",
    "MunchausenDQNLoss",
    "MunchausenIQNLoss",
    "MutualInformationDQNLoss",
    "MutualInformationIQNLoss",
    "PathConsistencyLoss",
    "PolyakTargetUpdate",
    "QLearningLoss",
    "QuantileRegressionDQNLoss",
    "Shaping",
    "SoftActorCriticLoss",
    "SoftDQNLoss",
    "SparseDQNLoss",
    "SoftQLearningLoss",
    "VIRELLoss",
]
