"""Sample-based estimates: importance-sampled soft values, Stein directions, and the E2W policy of a search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_reg.functional.soft import Temperature, at_least_float32, soft_policy, temperature_and_divisor


def soft_value_importance(
    q: Tensor, tau: Temperature, log_proposal: Tensor | float, *, dim: int = -1
) -> tuple[Tensor, Tensor]:
    r"""Soft value :math:`\tau \ln \frac{1}{K} \sum_k \exp(Q(a_k) / \tau) / p(a_k)` of actions ``a_k`` drawn from ``p``.

    It estimates :math:`V = \tau \ln \int \exp(Q(a) / \tau) da` by importance sampling. The estimate of the integral is
    unbiased; that of its logarithm is too low (Jensen), by about :math:`\tau / 2 \cdot (1 / ESS - 1 / K)`, and by more
    where the density is so much narrower than the proposal that no sample hits it. For ``Q(a) = -|a|^2`` on ``[-1,
    1]^D`` at ``tau = .1`` under a uniform proposal, 20 000 draws against quadrature (bias, standard deviation, in
    reward units); the last column on a lattice (:func:`lattice_points`), the others on independent draws:

    =  ======  ==============  ==============  ==============  ==============
    D  V       K = 16          K = 64          K = 1024        K = 8, lattice
    =  ======  ==============  ==============  ==============  ==============
    1  -0.058  -0.005, 0.034   -0.001, 0.016   -0.000, 0.004   0.000, 0.000
    2  -0.116  -0.020, 0.073   -0.004, 0.031   -0.000, 0.007   -0.003, 0.026
    3  -0.174  -0.060, 0.129   -0.013, 0.055   -0.000, 0.012   -0.053, 0.112
    4  -0.232  -0.121, 0.185   -0.033, 0.088   -0.002, 0.020   -0.155, 0.197
    5  -0.289  -0.206, 0.235   -0.071, 0.129   -0.005, 0.032   -0.246, 0.233
    6  -0.347  -0.300, 0.277   -0.124, 0.167   -0.012, 0.050   -0.362, 0.279
    =  ======  ==============  ==============  ==============  ==============

    Source: Haarnoja et al. 2017 (Reinforcement learning with deep energy-based policies), eq. (10).

    Args:
        q: values ``[*B, K]`` of the sampled actions, in reward units.
        tau: temperature > 0, in reward units; at 0 the largest value (the proposal drops out).
        log_proposal: log-densities ``ln p`` of the samples, broadcastable to ``[*B, K]``, nats per unit volume; ``-D ln
            2`` for the uniform proposal on ``[-1, 1]^D``.
        dim: dimension of the samples.

    Returns:
        Soft values ``[*B]`` in reward units, and the effective sample sizes ``(sum w)^2 / sum w^2`` ``[*B]`` of the
        weights ``w = exp(q / tau) / p``, between 1 (one sample carries all) and K (all count alike).

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    q = at_least_float32(q)
    tau, divisor = temperature_and_divisor(tau, q.dtype)
    q_max = q.amax(dim, keepdim=True)
    log_weights = (q - q_max) / divisor - log_proposal
    log_sum = torch.logsumexp(log_weights, dim)
    value = q_max.squeeze(dim) + tau * (log_sum - math.log(q.shape[dim]))
    return value, (2 * log_sum - torch.logsumexp(2 * log_weights, dim)).exp()


def lattice_points(count: int, dims: int) -> Tensor:
    r"""``count`` points that fill the unit cube evenly: :math:`x_k = (k / K, k / \phi, ..., k / \phi^{D-1}) \bmod 1`.

    Shifted together by one uniform draw, modulo 1, each of them is uniform on the cube, so a mean over them is
    unbiased, like one over independent draws, but varies less; :math:`\phi` solves :math:`\phi^D = \phi + 1`.

    Args:
        count: K, number of points, >= 1.
        dims: D, dimensions of the cube, >= 1.

    Returns:
        Points ``[K, D]`` in [0, 1) (no unit), float64.

    Raises:
        ValueError: ``count`` or ``dims`` below 1.

    Source: random shifts after Cranley and Patterson 1976; the generalized golden ratio is Roberts' (2018).

    >>> lattice_points(4, 1).squeeze(-1)
    tensor([0.0000, 0.2500, 0.5000, 0.7500], dtype=torch.float64)
    """
    if count < 1 or dims < 1:
        raise ValueError(f"count and dims must be >= 1, got {count} and {dims}.")
    phi = 2.0
    for _ in range(100):
        phi = (1 + phi) ** (1 / dims)
    steps = torch.tensor([1 / count, *(phi**-j for j in range(1, dims))], dtype=torch.float64)
    return torch.arange(count, dtype=torch.float64).unsqueeze(-1) * steps % 1


def svgd_bandwidth(fixed: Tensor, updated: Tensor | None = None, *, smallest: float = 1e-3) -> Tensor:
    r"""Bandwidth :math:`h = \max(\mathrm{median}_{ij} |x_j - y_i|^2 / \ln J, \mathrm{smallest})` of the RBF kernel.

    With it :math:`\sum_j \kappa(x_j, y) \approx 1` at the median distance. For an even number of pairs the median is
    the smaller of the two middle distances.

    A bandwidth that depends on the fixed particles biases the direction if they are few. One taken from the updated
    particles alone (``svgd_bandwidth(updated)``) does not: given their positions, the expected direction is zero once
    the fixed ones are drawn from ``p``, for any kernel (Stein's identity).

    Source: Liu and Wang 2016 (Stein variational gradient descent), with the released soft Q-learning code's ``ln J``
    and floor.

    Args:
        fixed: particles x ``[*B, J, D]``.
        updated: particles y ``[*B, I, D]``; None for the distances between different particles x.
        smallest: lower bound of the bandwidth.

    Returns:
        Bandwidths ``[*B]``, in squared units of the particles.

    Raises:
        ValueError: if there are fewer than two fixed particles (the logarithm of one is 0).
    """
    _check_particles(fixed)
    fixed = at_least_float32(fixed)
    if updated is None:
        i, j = torch.triu_indices(fixed.shape[-2], fixed.shape[-2], 1, device=fixed.device)
        apart = fixed[..., i, :] - fixed[..., j, :]
    else:
        apart = (fixed.unsqueeze(-2) - at_least_float32(updated).unsqueeze(-3)).flatten(-3, -2)
    return (apart.square().sum(-1).median(-1).values / math.log(fixed.shape[-2])).clamp(min=smallest)


def svgd_direction(fixed: Tensor, score: Tensor, updated: Tensor, bandwidth: Tensor) -> Tensor:
    r"""Stein variational direction, with :math:`\kappa(x, y) = \exp(-|x - y|^2 / h)`.

    .. math:: \Delta(y) = \frac{1}{J} \sum_j \kappa(x_j, y) \nabla \ln p(x_j) + \nabla_{x_j} \kappa(x_j, y)

    The steepest ascent, in the kernel's function space, of ``-KL(particles || p)``: the first term pulls the particles
    up the density, the second pushes them apart.

    Source: Liu and Wang 2016; amortized as in Haarnoja et al. 2017, eq. (13).

    Args:
        fixed: particles x ``[*B, J, D]``.
        score: gradient of ``ln p`` at them ``[*B, J, D]``; of a Boltzmann density that of ``Q / tau``.
        updated: particles y that move ``[*B, I, D]``.
        bandwidth: ``h`` ``[*B]``, see :func:`svgd_bandwidth`.

    Returns:
        Directions ``[*B, I, D]``, in inverse units of the particles.

    Raises:
        ValueError: if there are fewer than two fixed particles (one is plain gradient ascent on ``ln p``, and collapses
            onto its mode), or ``score`` does not have the shape of ``fixed``.
    """
    _check_particles(fixed)
    if score.shape != fixed.shape:
        raise ValueError(f"score must have the shape of fixed {tuple(fixed.shape)}, got {tuple(score.shape)}.")
    fixed, score, updated = at_least_float32(fixed), at_least_float32(score), at_least_float32(updated)
    h = at_least_float32(bandwidth)[..., None, None]
    apart = updated.unsqueeze(-2) - fixed.unsqueeze(-3)  # [*B, I, J, D], away from the fixed ones
    kernel = (-apart.square().sum(-1) / h).exp()
    repulsion = (kernel.unsqueeze(-1) * apart).sum(-2) * (2 / h)
    return (kernel @ score + repulsion) / fixed.shape[-2]


def _check_particles(fixed: Tensor) -> None:
    if fixed.ndim < 2 or fixed.shape[-2] < 2:
        raise ValueError(
            f"fixed must hold at least 2 particles [*B, J, D] (one would be plain gradient ascent), got shape "
            f"{tuple(fixed.shape)}."
        )


def e2w_exploration(visits: Tensor, num_actions: int, epsilon: float) -> Tensor:
    r"""Exploration weight :math:`\lambda(s) = \min(1, \epsilon A / \ln(N(s) + 1))`.

    An unvisited node has weight 1, and so has every node until ``N(s) >= exp(epsilon A) - 1``: choose epsilon well
    below ``ln(budget) / A``, or the search stays uniform. Unclipped, the formula is infinite at ``N = 0`` and exceeds 1
    for small ``N``; other implementations write ``ln(N + 2)`` or drop ``A``.

    Source: Xiao et al. 2019 (MENTS), equation (5); the clip is ours.

    Args:
        visits: visits ``N(s)`` of the node ``[*B]``.
        num_actions: number of actions A.
        epsilon: exploration > 0, without unit.

    Returns:
        Weights in (0, 1] ``[*B]``.

    Raises:
        ValueError: if ``epsilon`` is not a finite number > 0.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number > 0, got {epsilon}.")
    return (epsilon * num_actions / torch.log1p(at_least_float32(visits))).clamp(max=1.0)


def e2w_policy(q: Tensor, visits: Tensor, tau: Temperature, epsilon: float) -> Tensor:
    r"""E2W, :math:`\pi(a) = (1 - \lambda) \, \mathrm{softmax}(q / \tau)(a) + \lambda / A`, as probabilities.

    :math:`\lambda` is :func:`e2w_exploration`. An action with ``q = -inf`` (never tried) gets only its share of
    :math:`\lambda`; if no action was tried, the policy is uniform.

    Source: Xiao et al. 2019 (MENTS), equation (5).

    Args:
        q: action values ``[*B, A]``, in reward units.
        visits: visits of the node ``[*B]``, or of each action ``[*B, A]``, which are summed.
        tau: temperature >= 0, in reward units.
        epsilon: exploration > 0, without unit.

    Returns:
        Probabilities ``[*B, A]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number or not 0-dimensional, if ``epsilon`` is not a finite
            number > 0, or if ``visits`` has another shape.
    """
    q = at_least_float32(q)
    if visits.shape == q.shape:
        visits = visits.sum(-1)
    if visits.shape != q.shape[:-1]:
        raise ValueError(f"visits must have shape {list(q.shape[:-1])} or {list(q.shape)}, got {list(visits.shape)}.")
    num_actions = q.shape[-1]
    lam = e2w_exploration(visits.to(q.dtype), num_actions, epsilon).unsqueeze(-1)
    unknown = (q == -math.inf).all(-1, keepdim=True)
    softmax = torch.where(unknown, 1 / num_actions, soft_policy(q.masked_fill(unknown, 0.0), tau))
    return (1 - lam) * softmax + lam / num_actions
