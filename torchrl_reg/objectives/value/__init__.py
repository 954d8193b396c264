"""Slot 4: value estimators whose backup carries a regularizer, registered under string names with TorchRL."""

from torchrl_reg.objectives.value.estimator import RegularizedTD0Estimator
from torchrl_reg.objectives.value.named import (
    MunchausenTD0Estimator,
    PriorSoftTD0Estimator,
    RegularizedTD1Estimator,
    RegularizedTDLambdaEstimator,
    SoftTD0Estimator,
    SoftTDLambdaEstimator,
)
from torchrl_reg.objectives.value.q_lambda import RegularizedQLambdaEstimator
from torchrl_reg.objectives.value.registry import RegValueEstimators

__all__ = [
    "MunchausenTD0Estimator",
    "PriorSoftTD0Estimator",
    "RegValueEstimators",
    "RegularizedQLambdaEstimator",
    "RegularizedTD0Estimator",
    "RegularizedTD1Estimator",
    "RegularizedTDLambdaEstimator",
    "SoftTD0Estimator",
    "SoftTDLambdaEstimator",
]
