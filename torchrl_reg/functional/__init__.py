"""Equations of regularized reinforcement learning: tensors in, tensors out.

Shapes in the docstrings: ``*B`` batch, ``A`` actions, ``N`` / ``M`` online / target quantiles.
Every function is pure, differentiable, works in float32 and float64 (half precision is computed in
float32) and compiles without a graph break.
"""

from torchrl_reg.functional.distributional import categorical_projection, quantile_huber_loss
from torchrl_reg.functional.returns import lambda_return, path_consistency, q_lambda_return
from torchrl_reg.functional.sampling import (
    e2w_exploration,
    e2w_policy,
    soft_value_importance,
    svgd_bandwidth,
    svgd_direction,
)
from torchrl_reg.functional.soft import (
    action_gap,
    advantage_gap,
    averaged_prior,
    bellman_temperature,
    floored_log_prior,
    kl_divergence,
    munchausen_bonus,
    persistent_advantage_gap,
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
