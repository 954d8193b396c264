"""Slot 4: value estimators whose backup carries a regularizer, registered under string names with TorchRL."""

from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.td0 import (
    MunchausenTD0Estimator,
    PriorSoftTD0Estimator,
    RegularizedTD0Estimator,
    SoftTD0Estimator,
)
from torchrl_reg.objectives.value.td_lambda import (
    RegularizedTD1Estimator,
    RegularizedTDLambdaEstimator,
    SoftTDLambdaEstimator,
)

__all__ = [
    "MunchausenTD0Estimator",
    "PriorSoftTD0Estimator",
    "RegValueEstimators",
    "RegularizedTD0Estimator",
    "RegularizedTD1Estimator",
    "RegularizedTDLambdaEstimator",
    "SoftTD0Estimator",
    "SoftTDLambdaEstimator",
]
