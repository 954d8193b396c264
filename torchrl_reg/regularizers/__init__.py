"""Slot 1 as modules: each owns its coefficients, and one object serves loss, actor, exploration and planner."""

from torchrl_reg.regularizers.action_prior import ActionPrior
from torchrl_reg.regularizers.coefficient import Coefficient
from torchrl_reg.regularizers.entropy import Boltzmann, Entropy
from torchrl_reg.regularizers.guaranteed import GuaranteedTemperature
from torchrl_reg.regularizers.hard_max import HardMax
from torchrl_reg.regularizers.learnt import BellmanErrorCoefficient, DualCoefficient
from torchrl_reg.regularizers.prior_kl import PriorKL
from torchrl_reg.regularizers.regularizer import Regularized, Regularizer, check_regularizer
from torchrl_reg.regularizers.tsallis import Tsallis

__all__ = [
    "ActionPrior",
    "BellmanErrorCoefficient",
    "Boltzmann",
    "Coefficient",
    "DualCoefficient",
    "Entropy",
    "GuaranteedTemperature",
    "HardMax",
    "PriorKL",
    "Regularized",
    "Regularizer",
    "Tsallis",
    "check_regularizer",
]
