"""Equations of regularized reinforcement learning: tensors in, tensors out.

Shapes in the docstrings: ``*B`` batch, ``A`` actions, ``N`` / ``M`` online / target quantiles.
Every function is pure, differentiable, works in float32 and float64 (half precision is computed in
float32) and compiles without a graph break.
"""

from torchrl_reg.functional.action_prior import averaged_prior, floored_log_prior
from torchrl_reg.functional.bellman import bellman_temperature
from torchrl_reg.functional.categorical import categorical_projection
from torchrl_reg.functional.e2w import e2w_exploration, e2w_policy
from torchrl_reg.functional.munchausen import action_gap, advantage_gap, munchausen_bonus, persistent_advantage_gap
from torchrl_reg.functional.path_consistency import path_consistency
from torchrl_reg.functional.quantile import quantile_huber_loss
from torchrl_reg.functional.returns import lambda_return, q_lambda_return
from torchrl_reg.functional.sampling import soft_value_importance, svgd_bandwidth, svgd_direction
from torchrl_reg.functional.soft import (
    kl_divergence,
    policy_entropy,
    scaled_log_policy,
    soft_gap,
    soft_policy,
    soft_value,
    soft_value_and_log_policy,
    soft_value_and_policy,
)

__all__ = [
    "action_gap",
    "advantage_gap",
    "averaged_prior",
    "bellman_temperature",
    "e2w_exploration",
    "e2w_policy",
    "categorical_projection",
    "floored_log_prior",
    "kl_divergence",
    "lambda_return",
    "munchausen_bonus",
    "path_consistency",
    "persistent_advantage_gap",
    "policy_entropy",
    "q_lambda_return",
    "quantile_huber_loss",
    "scaled_log_policy",
    "soft_gap",
    "soft_policy",
    "soft_value",
    "soft_value_and_log_policy",
    "soft_value_and_policy",
    "soft_value_importance",
    "svgd_bandwidth",
    "svgd_direction",
]
