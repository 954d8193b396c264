"""Value estimators whose backup carries a regularizer, registered under string names with TorchRL."""

from torchrl_reg.objectives.value.munchausen_td import MunchausenTD0Estimator
from torchrl_reg.objectives.value.prior_soft_td import PriorSoftTD0Estimator
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.soft_td import SoftTD0Estimator, SoftTDLambdaEstimator

__all__ = [
    "MunchausenTD0Estimator",
    "PriorSoftTD0Estimator",
    "RegValueEstimators",
    "SoftTD0Estimator",
    "SoftTDLambdaEstimator",
]
