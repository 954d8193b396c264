"""Slot 1 as modules: each owns its coefficients, and one object serves loss, actor, exploration and planner."""

from torchrl_reg.regularizers.coefficients import (
    BellmanErrorCoefficient,
    Coefficient,
    DualCoefficient,
    as_coefficient,
    guaranteed_temperature,
)
from torchrl_reg.regularizers.policies import (
    Boltzmann,
    Entropy,
    HardMax,
    Regularized,
    Regularizer,
    Tsallis,
    check_regularizer,
)
from torchrl_reg.regularizers.prior import ActionPrior, PriorKL

__all__ = [
    "ActionPrior",
    "BellmanErrorCoefficient",
    "Boltzmann",
    "Coefficient",
    "DualCoefficient",
    "Entropy",
    "HardMax",
    "PriorKL",
    "Regularized",
    "Regularizer",
    "Tsallis",
    "as_coefficient",
    "check_regularizer",
    "guaranteed_temperature",
]
