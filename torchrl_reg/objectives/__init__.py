"""Loss modules of regularized RL, one method per file, for TorchRL's collectors, buffers and trainers."""

from torchrl_reg.objectives.advantage_learning import AdvantageLearningLoss
from torchrl_reg.objectives.categorical_dqn import CategoricalDQNLoss, MunchausenCategoricalLoss
from torchrl_reg.objectives.discrete_virel import DiscreteVIRELLoss
from torchrl_reg.objectives.implicit_q import ImplicitQLoss
from torchrl_reg.objectives.iqn import IQNLoss
from torchrl_reg.objectives.munchausen_dqn import MunchausenDQNLoss
from torchrl_reg.objectives.munchausen_iqn import MunchausenIQNLoss
from torchrl_reg.objectives.mutual_information import MutualInformationDQNLoss, MutualInformationIQNLoss
from torchrl_reg.objectives.path_consistency import PathConsistencyLoss
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.quantile_regression import QuantileRegressionDQNLoss
from torchrl_reg.objectives.shaping import AdvantageGap, Munchausen, Shaping
from torchrl_reg.objectives.soft_actor_critic import SoftActorCriticLoss
from torchrl_reg.objectives.soft_dqn import SoftDQNLoss
from torchrl_reg.objectives.soft_q_learning import SoftQLearningLoss
from torchrl_reg.objectives.sparse_dqn import SparseDQNLoss
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
