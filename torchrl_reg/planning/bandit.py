"""The softmax bandit of E2W: how fast sampled means give the softmax value.

Shapes: ``R`` repetitions side by side, ``A`` arms, ``T`` recorded times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_reg.functional import e2w_exploration, soft_policy, soft_value
from torchrl_reg.planning.search import drawn
from torchrl_reg.planning.tree import check_minimum


@dataclass(frozen=True)
class BanditRun:
    r"""Mean squared errors over the repetitions, of :math:`U = \sum_a \exp(\hat r_a / \tau)` and of :math:`\tau \ln U`.

    Args:
        time: pulls so far ``[T]``.
        error_u: mean squared error of ``U`` ``[T]``, without unit.
        error_value: mean squared error of the softmax value ``[T]``, in squared reward units.
        limit_u: what ``time * error_u`` tends to, :math:`\sigma^2 / \tau^2 (\sum_a \exp(r_a / \tau))^2`.
        limit_value: what ``time * error_value`` tends to, :math:`\sigma^2`.
    """

    time: Tensor
    error_u: Tensor
    error_value: Tensor
    limit_u: float
    limit_value: float


@torch.no_grad()
def softmax_bandit(
    mean: Sequence[float] | Tensor,
    *,
    noise: float,
    tau: float,
    epsilon: float,
    record_at: Sequence[int],
    num_repetitions: int,
    seed: int,
    chunk: int = 2_000,
) -> BanditRun:
    r"""Pulls the arms of a Gaussian bandit by E2W on the sample means, ``num_repetitions`` times side by side.

    The theorem: :math:`\lim_t t E_t = \sigma^2 / \tau^2 (\sum_a \exp(r_a / \tau))^2` for the mean squared error
    :math:`E_t` of ``U``, and no rule of sampling does better. It is a statement about ``U``; for the softmax value
    itself the limit is :math:`\sigma^2`. An ``epsilon`` so large that :math:`\lambda = 1` samples uniformly.

    Source: Xiao et al. 2019 (MENTS), theorems 1 and 2.

    Args:
        mean: mean rewards of the arms ``[A]``.
        noise: standard deviation :math:`\sigma` of a reward > 0, in reward units.
        tau: temperature > 0, in reward units.
        epsilon: exploration > 0, without unit, see :func:`torchrl_reg.functional.e2w_exploration`.
        record_at: rising times >= 1 to record, in pulls; the last one ends the run.
        num_repetitions: repetitions R >= 1.
        seed: of the rewards and the choices.
        chunk: repetitions computed at once; it changes the random numbers, not their law.

    Returns:
        The errors.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> run = softmax_bandit(
        ...     [0.2, 0.5], noise=0.3, tau=0.5, epsilon=0.1, record_at=[100], num_repetitions=500, seed=0
        ... )
        >>> bool(abs(run.time * run.error_value / run.limit_value - 1) < 0.3)
        True
    """
    mean = torch.as_tensor(mean, dtype=torch.float64)
    for name, value in (("noise", noise), ("tau", tau)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}.")
    if mean.ndim != 1 or len(mean) == 0 or not mean.isfinite().all():
        raise ValueError(f"mean must list the finite mean rewards of the arms, got {mean.tolist()}.")
    times = list(record_at)
    if not times or times[0] < 1 or sorted(set(times)) != times:
        raise ValueError(f"record_at must list rising times >= 1, got {times}.")
    check_minimum(1, num_repetitions=num_repetitions)
    generator = torch.Generator().manual_seed(seed)
    exact_u, exact_value = (mean / tau).exp().sum(), soft_value(mean, tau)
    errors = torch.zeros(2, len(times), dtype=torch.float64)
    for first in range(0, num_repetitions, chunk):
        size = min(chunk, num_repetitions - first)
        for index, sampled in enumerate(_means(mean, noise, tau, epsilon, times, size, generator)):
            errors[0, index] += ((sampled / tau).exp().sum(-1) - exact_u).square().sum()
            errors[1, index] += (soft_value(sampled, tau) - exact_value).square().sum()
    errors /= num_repetitions
    limit_u = (noise / tau * exact_u).square().item()
    return BanditRun(torch.tensor(times), errors[0], errors[1], limit_u, noise**2)


def _means(
    mean: Tensor, noise: float, tau: float, epsilon: float, times: list[int], size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields the sample means of the arms ``[size, A]`` at each of ``times``; an arm never pulled has mean 0.

    Each arm is pulled once before E2W begins, which does not affect the limit.
    """
    pulls, total = torch.zeros(2, size, len(mean), dtype=torch.float64)
    sampled, rows = total, torch.arange(size)
    for time in range(times[-1]):
        lam = e2w_exploration(torch.tensor(time, dtype=torch.float64), len(mean), epsilon)
        pi = (1 - lam) * soft_policy(sampled, tau) + lam / len(mean)
        u = torch.rand(size, generator=generator, dtype=torch.float64)
        arm = drawn(pi, u) if time >= len(mean) else torch.full((size,), time)
        pulls[rows, arm] += 1
        total[rows, arm] += mean[arm] + noise * torch.randn(size, generator=generator, dtype=torch.float64)
        sampled = total / pulls.clamp(min=1)
        if time + 1 in times:
            yield sampled
