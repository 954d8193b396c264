"""Entropy- and KL-regularized maximum: the soft value, its policy, and how random that policy is.

Shapes: ``*B`` batch, ``A`` actions. ``tau`` is a temperature in reward units, a Python number or a
0-dimensional tensor. Every function subtracts the maximum before dividing by ``tau``, so results
are right at any temperature, ``tau = 0`` included. ``q`` masks an action by ``-inf`` or by the
smallest finite number, ``log_prior`` by ``-inf``; each row needs one action left. Half-precision
inputs are computed and returned in float32.

Gradients flow into ``q`` and ``log_prior``, and into a tensor ``tau`` where no action is masked.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Temperature: TypeAlias = float | Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself in float32 and float64, a float32 copy in every other dtype."""
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.float()


def temperature_and_divisor(tau: Temperature, dtype: torch.dtype) -> tuple[Temperature, Temperature]:
    """``tau`` and ``max(tau, smallest normal number of dtype)``, safe to divide by at ``tau = 0``.

    A difference of action values over the floored divisor is already infinitely many temperatures
    wide, so the floor changes no result; without it ``0 / 0`` at the best action is NaN, and CUDA's
    multiplication by ``1 / tau`` overflows for a subnormal ``tau``.

    Raises:
        ValueError: if ``tau`` is a number that is negative, infinite or NaN, or a tensor with
            dimensions. The value inside a tensor is not checked: that would wait for the device.
    """
    floor = torch.finfo(dtype).tiny
    if isinstance(tau, Tensor):
        if tau.ndim != 0:
            raise ValueError(f"tau must be a number or a 0-dimensional tensor, got shape {tuple(tau.shape)}.")
        # A 0-dimensional tensor never promotes the data, so a float64 coefficient needs no cast.
        tau = at_least_float32(tau)
        # float64's smallest number would round to 0 in a float32 coefficient.
        return tau, tau.clamp(min=max(floor, torch.finfo(tau.dtype).tiny))
    if not 0.0 <= tau < math.inf:
        raise ValueError(f"tau must be a finite temperature >= 0, got {tau}.")
    return tau, max(tau, floor)


def soft_value(q: Tensor, tau: Temperature, *, log_prior: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""Soft value :math:`F_\tau(q) = \tau \ln \sum_a \rho(a) \exp(q(a) / \tau)`.

    It is the largest value of :math:`\langle \pi, q \rangle - \tau KL(\pi \| \rho)` over policies,
    or of :math:`\langle \pi, q \rangle + \tau H(\pi)` without a prior, where :math:`\rho(a) = 1`.
    At ``tau = 0`` it is the maximum over the actions the prior supports.

    Source: Haarnoja et al. 2017 (soft Q-learning).

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        log_prior: log-probabilities, broadcastable to ``[*B, A]``; None is the plain logsumexp.
        dim: dimension of the actions.

    Returns:
        Soft values ``[*B]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    q_max, _, _, tau, log_sum = _shifted(q, tau, log_prior, dim)
    return (q_max + tau * log_sum).squeeze(dim)


def scaled_log_policy(q: Tensor, tau: Temperature, *, log_prior: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""Scaled log-policy :math:`\tau \ln \pi(a) = q(a) + \tau \ln \rho(a) - F_\tau(q) \le 0`.

    Finite for any ``tau > 0``, where ``tau * log_softmax(q / tau)`` overflows; at ``tau = 0`` it is
    ``q`` minus its maximum over the supported actions. Masked actions get ``-inf`` (or the
    smallest finite number, if that is how ``q`` masks them).

    Source: Vieillard et al. 2020 (Munchausen RL); the max-shifted form is that of the released code.

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        log_prior: log-probabilities, broadcastable to ``[*B, A]``; None is the plain logsumexp.
        dim: dimension of the actions.

    Returns:
        ``tau * ln pi`` ``[*B, A]``, in reward units.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    _, advantage, log_rho, tau, log_sum = _shifted(q, tau, log_prior, dim)
    if log_rho is not None:
        advantage = advantage + tau * log_rho
    return advantage - tau * log_sum


def soft_value_and_log_policy(
    q: Tensor, tau: Temperature, *, log_prior: Tensor | None = None, dim: int = -1
) -> tuple[Tensor, Tensor]:
    r"""Both :math:`F_\tau(q)` and :math:`\tau \ln \pi`, for the price of one.

    Source: :func:`soft_value` and :func:`scaled_log_policy`.

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        log_prior: log-probabilities, broadcastable to ``[*B, A]``; None is the plain logsumexp.
        dim: dimension of the actions.

    Returns:
        Soft values ``[*B]`` and scaled log-policies ``[*B, A]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    q_max, advantage, log_rho, tau, log_sum = _shifted(q, tau, log_prior, dim)
    gap = tau * log_sum
    if log_rho is not None:
        advantage = advantage + tau * log_rho
    return (q_max + gap).squeeze(dim), advantage - gap


def soft_value_and_policy(q: Tensor, tau: Temperature) -> tuple[Tensor, Tensor]:
    r"""Both :math:`F_\tau(q)` and :math:`\pi`, without a prior, for the price of one.

    Source: :func:`soft_value` and :func:`soft_policy`.

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.

    Returns:
        Soft values ``[*B]`` and probabilities ``[*B, A]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    q = at_least_float32(q)
    tau, divisor = temperature_and_divisor(tau, q.dtype)
    best = q.amax(-1, keepdim=True)
    weight = ((q - best) / divisor).exp()
    total = weight.sum(-1, keepdim=True)
    return (best + tau * total.log()).squeeze(-1), weight / total


def soft_policy(q: Tensor, tau: Temperature, *, log_prior: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""Boltzmann policy :math:`\pi(a) \propto \rho(a) \exp(q(a) / \tau)`, as probabilities.

    At ``tau = 0`` the best supported actions share the probability: equally without a prior, in
    proportion to it with one.

    Source: Haarnoja et al. 2017 (soft Q-learning).

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        log_prior: log-probabilities, broadcastable to ``[*B, A]``; None is the uniform measure.
        dim: dimension of the actions.

    Returns:
        Probabilities ``[*B, A]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    q, log_rho = _supported(q, log_prior)
    _, divisor = temperature_and_divisor(tau, q.dtype)
    logits = (q - q.amax(dim, keepdim=True)) / divisor
    return torch.softmax(logits if log_rho is None else logits + log_rho, dim)


def soft_gap(q: Tensor, tau: Temperature, *, log_prior: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""Soft value minus maximum, :math:`F_\tau(q) - \max_a q(a)`, computed without cancellation.

    Between 0 and ``tau * ln A`` without a prior; at most 0 with one, whose maximum runs over the
    supported actions.

    Source: the definition.

    Args:
        q: action values ``[*B, A]``, in reward units.
        tau: temperature >= 0, in reward units.
        log_prior: log-probabilities, broadcastable to ``[*B, A]``; None is the plain logsumexp.
        dim: dimension of the actions.

    Returns:
        Gaps ``[*B]``, in reward units.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number, or not 0-dimensional.
    """
    _, _, _, tau, log_sum = _shifted(q, tau, log_prior, dim)
    return (tau * log_sum).squeeze(dim)


def policy_entropy(pi: Tensor, *, dim: int = -1) -> Tensor:
    r"""Shannon entropy :math:`H(\pi) = -\sum_a \pi(a) \ln \pi(a)`, with :math:`0 \ln 0 = 0`.

    Source: the definition.

    Args:
        pi: probabilities ``[*B, A]`` (not their logarithms).
        dim: dimension of the actions.

    Returns:
        Entropies ``[*B]``, in nats.
    """
    pi = at_least_float32(pi)
    # The floor keeps the gradient at a probability of 0 finite; ln 0 would make it infinite.
    return torch.special.entr(pi.clamp(min=torch.finfo(pi.dtype).tiny)).sum(dim)


def kl_divergence(log_p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    r"""Kullback-Leibler divergence :math:`KL(p \| q) = \sum_a p(a) (\ln p(a) - \ln q(a))`.

    Actions with ``p = 0`` add nothing, whatever ``q``; ``p > 0`` where ``q = 0`` makes it infinite.

    Source: the definition.

    Args:
        log_p: log-probabilities of the first distribution ``[*B, A]``, ``-inf`` allowed.
        log_q: those of the second, broadcastable to ``[*B, A]``, ``-inf`` allowed.
        dim: dimension of the actions.

    Returns:
        Divergences ``[*B]``, in nats.
    """
    log_p, log_q = at_least_float32(log_p), at_least_float32(log_q)
    p = log_p.exp()
    log_ratio = torch.where(p > 0.0, log_p - log_q, 0.0)
    return (p * log_ratio).sum(dim)


def masked_values(q: Tensor, mask: Tensor | None) -> Tensor:
    """``q [*B, A]`` in at least float32, ``-inf`` where ``mask [*B, A]`` forbids the action."""
    q = at_least_float32(q)
    return q if mask is None else q.masked_fill(~mask, -math.inf)


def _shifted(
    q: Tensor, tau: Temperature, log_prior: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor | None, Temperature, Tensor]:
    """Supported maximum, advantage, log-prior, tau and ``ln sum rho exp(advantage / tau)``.

    Reduced dimensions are kept.
    """
    q, log_rho = _supported(q, log_prior)
    tau, divisor = temperature_and_divisor(tau, q.dtype)
    q_max = q.amax(dim, keepdim=True)
    advantage = q - q_max
    logits = advantage / divisor
    if log_rho is None:
        # Logits are <= 0 and one of them is 0: the sum neither overflows nor vanishes, and three
        # kernels do what torch.logsumexp needs nine for.
        log_sum = logits.exp().sum(dim, keepdim=True).log()
    else:
        log_sum = torch.logsumexp(logits + log_rho, dim, keepdim=True)
    return q_max, advantage, log_rho, tau, log_sum


def _supported(q: Tensor, log_prior: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``q`` with ``-inf`` outside the prior's support, and the log-prior with 0 there.

    Moving the mask from the prior into ``q`` keeps ``0 * -inf`` out of values and gradients.
    """
    q = at_least_float32(q)
    if log_prior is None:
        return q, None
    supported = log_prior > -math.inf
    return torch.where(supported, q, -math.inf), torch.where(supported, log_prior.to(q.dtype), 0.0)
