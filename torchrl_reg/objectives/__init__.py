"""Loss modules of regularized RL, one method per file, for TorchRL's collectors, buffers and trainers."""

from torchrl_reg.objectives.actor_critic.implicit_q import ImplicitQLoss
from torchrl_reg.objectives.actor_critic.path_consistency import PathConsistencyLoss
from torchrl_reg.objectives.actor_critic.soft_actor_critic import SoftActorCriticLoss
from torchrl_reg.objectives.actor_critic.soft_q_learning import SoftQLearningLoss
from torchrl_reg.objectives.actor_critic.virel import VIRELLoss
from torchrl_reg.objectives.named.advantage_learning import AdvantageLearningLoss
from torchrl_reg.objectives.named.categorical_dqn import CategoricalDQNLoss, MunchausenCategoricalLoss
from torchrl_reg.objectives.named.discrete_virel import DiscreteVIRELLoss
from torchrl_reg.objectives.named.iqn import IQNLoss
from torchrl_reg.objectives.named.munchausen_dqn import MunchausenDQNLoss
from torchrl_reg.objectives.named.munchausen_iqn import MunchausenIQNLoss
from torchrl_reg.objectives.named.mutual_information import MutualInformationDQNLoss, MutualInformationIQNLoss
from torchrl_reg.objectives.named.quantile_regression import QuantileRegressionDQNLoss
from torchrl_reg.objectives.named.soft_dqn import SoftDQNLoss
from torchrl_reg.objectives.named.sparse_dqn import SparseDQNLoss
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.shaping import AdvantageGap, Munchausen, Shaping
from torchrl_reg.objectives.target_update import HardTargetUpdate, PolyakTargetUpdate

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
