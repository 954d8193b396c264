"""Action priors: floored, and averaged over visited states.

Shapes: ``*B`` batch, ``A`` actions, ``T`` time steps, ``N`` environments stepped together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.temperature import at_least_float32


def floored_log_prior(log_prior: Tensor, floor: float, *, dim: int = -1) -> Tensor:
    r"""Log-probabilities of :math:`\max(\rho, floor) / \sum_a \max(\rho(a), floor)`.

    A prior of exactly 0 would be absorbing: the policy could never choose that action again. Where no
    probability is below the floor, this only normalizes.

    Source: ours; Grau-Moya et al. 2019 (MIRL) leave the zeros open.

    Args:
        log_prior: logits ``[*B, A]``, normalized here first; ``-inf`` allowed.
        floor: smallest probability before the last normalization, in (0, 1 / A).
        dim: dimension of the actions.

    Returns:
        Log-probabilities ``[*B, A]``, finite.
    """
    prior = torch.softmax(at_least_float32(log_prior), dim).clamp(min=floor)
    return prior.log() - prior.sum(dim, keepdim=True).log()


def averaged_prior(prior: Tensor, policies: Tensor, rate: float) -> Tensor:
    r"""The moving average :math:`\rho \leftarrow (1 - \alpha)\rho + \alpha \pi_i` after ``T x N`` steps.

    The steps of one time are exchangeable: each of the ``N`` counts with their mean policy, so that
    :math:`\rho_{t+1} = (1-\alpha)^N \rho_t + (1 - (1-\alpha)^N) \bar\pi_t`. For ``N = 1`` that is the
    sequential rule to the last digit, given the policies.

    Source: Grau-Moya et al. 2019 (MIRL), the update of the marginal policy.

    Args:
        prior: probabilities ``[A]``.
        policies: probabilities of all actions at the visited states, in order of time ``[T, N, A]``.
        rate: step size per environment step, in (0, 1].

    Returns:
        Probabilities ``[A]``.
    """
    steps, envs = policies.shape[:2]
    keep = (1.0 - rate) ** envs
    age = torch.arange(steps - 1, -1, -1, device=prior.device)
    weights = (1.0 - keep) * torch.pow(torch.tensor(keep, dtype=prior.dtype, device=prior.device), age)
    means = policies.to(prior.dtype).mean(1)
    return keep**steps * prior + weights @ means
