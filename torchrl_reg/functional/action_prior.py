"""Action priors: floored, and averaged over visited states.

Shapes: ``*B`` batch, ``A`` actions, ``T`` time steps, ``N`` environments stepped together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.soft import at_least_float32


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


def averaged_prior(prior: Tensor, policies: Tensor, rate: float, *, mask: Tensor | None = None) -> Tensor:
    r"""The moving average :math:`\rho \leftarrow (1 - \alpha)\rho + \alpha \pi_i` after ``T x N`` steps.

    The ``N`` steps taken at one time are exchangeable: each counts with their mean policy, so that
    :math:`\rho_{t+1} = (1-\alpha)^N \rho_t + (1 - (1-\alpha)^N) \bar\pi_t`. For ``N = 1`` that is the
    sequential rule to the last digit, given the policies.

    Source: Grau-Moya et al. 2019 (MIRL), the update of the marginal policy.

    Args:
        prior: probabilities ``[A]``.
        policies: probabilities of all actions at the visited states, in order of time ``[T, N, A]``.
        rate: step size per environment step, in (0, 1].
        mask: which steps were taken ``[T, N]``; None means all. Entries of the others are never read.

    Returns:
        Probabilities ``[A]``.
    """
    policies = policies.to(prior.dtype)
    if mask is None:
        mask = torch.ones(policies.shape[:2], dtype=torch.bool, device=policies.device)
    counts = mask.sum(1)
    summed = torch.where(mask.unsqueeze(-1), policies, policies.new_zeros(())).sum(1)
    means = summed / counts.clamp(min=1).unsqueeze(-1)
    keep = torch.pow(torch.full_like(counts, 1.0 - rate, dtype=prior.dtype), counts)
    # The share that a step keeps after all later ones.
    later = keep.flip(0).cumprod(0).flip(0)
    shares = (1.0 - keep) * torch.cat((later[1:], later.new_ones(1)))
    return later[0] * prior + shares @ means
