"""Loss modules of regularized RL, one method a file, for TorchRL's collectors, buffers and trainers."""

from torchrl_reg.objectives.advantage_learning import AdvantageLearningLoss
from torchrl_reg.objectives.implicit_q import ImplicitQLoss
from torchrl_reg.objectives.iqn import IQNLoss
from torchrl_reg.objectives.munchausen_dqn import MunchausenDQNLoss
from torchrl_reg.objectives.munchausen_iqn import MunchausenIQNLoss
from torchrl_reg.objectives.mutual_information_dqn import MutualInformationDQNLoss
from torchrl_reg.objectives.mutual_information_iqn import MutualInformationIQNLoss
from torchrl_reg.objectives.path_consistency import PathConsistencyLoss
from torchrl_reg.objectives.soft_dqn import SoftDQNLoss
from torchrl_reg.objectives.target_update import HardTargetUpdate, PolyakTargetUpdate

__all__ = [
    "AdvantageLearningLoss",
    "HardTargetUpdate",
    "IQNLoss",
    "ImplicitQLoss",
    "MunchausenDQNLoss",
    "MunchausenIQNLoss",
    "MutualInformationDQNLoss",
    "MutualInformationIQNLoss",
    "PathConsistencyLoss",
    "PolyakTargetUpdate",
    "SoftDQNLoss",
]
