"""Soft values and policies, Munchausen bonuses and action gaps, priors, Bellman temperatures.

Shapes: ``*B`` batch, ``A`` actions.
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


def promoted(*tensors: Tensor) -> list[Tensor]:
    """``tensors`` in their common dtype, float32 at least: rewards may be integers, and half precision loses digits."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


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


def soft_value_and_log_ratio(q: Tensor, tau: Temperature, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    r"""Both :math:`F_\tau(q)` ``[*B]`` and :math:`\tau \ln (\pi / \rho)` ``[*B, A]``; ``-inf`` where ``rho`` is 0.

    Not the log-policy minus ``tau ln rho``, which cancels at large temperatures.

    Source: :func:`soft_value` and :func:`scaled_log_policy`.
    """
    q_max, advantage, _, tau, log_sum = _shifted(q, tau, log_prior, -1)
    gap = tau * log_sum
    return (q_max + gap).squeeze(-1), advantage - gap


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
    entropy: Tensor = torch.special.entr(pi.clamp(min=torch.finfo(pi.dtype).tiny)).sum(dim)
    return entropy


def kl_divergence(log_p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    r"""Kullback-Leibler divergence :math:`KL(p \| q) = \sum_a p(a) (\ln p(a) - \ln q(a))`.

    Actions with ``p = 0`` add nothing for any ``q``; ``p > 0`` where ``q = 0`` makes it infinite.

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
    """``q [*B, A]`` in float32 or float64, ``-inf`` where ``mask [*B, A]`` forbids the action."""
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
        log_sum = _log_sum_under_prior(logits, log_rho, log_prior.expand_as(q), dim)  # type: ignore[union-attr]
    return q_max, advantage, log_rho, tau, log_sum


def _log_sum_under_prior(logits: Tensor, log_rho: Tensor, log_prior: Tensor, dim: int) -> Tensor:
    """``ln sum rho exp(logits)``; near 0 as exact as the logits: a large temperature multiplies its error."""
    log_prior = at_least_float32(log_prior)
    mass = torch.logsumexp(log_prior, dim, keepdim=True).to(logits.dtype)  # 0, of a normalized prior
    rho = torch.softmax(log_prior, dim).to(logits.dtype)
    below = (rho * logits.expm1()).sum(dim, keepdim=True)  # from -1 to 0
    near = below > -0.5
    exact = mass + torch.where(near, below, 0.0).log1p()
    return torch.where(near, exact, torch.logsumexp(logits + log_rho, dim, keepdim=True))


def _supported(q: Tensor, log_prior: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``q`` with ``-inf`` outside the prior's support, and the log-prior with 0 there.

    Moving the mask from the prior into ``q`` keeps ``0 * -inf`` out of values and gradients.
    """
    q = at_least_float32(q)
    if log_prior is None:
        return q, None
    supported = log_prior > -math.inf
    return torch.where(supported, q, -math.inf), torch.where(supported, log_prior.to(q.dtype), 0.0)


def action_index(action: Tensor, action_space: str, batch_dims: int) -> Tensor:
    """The action (``[*B]`` or ``[*B, 1]`` categorical, ``[*B, A]`` one-hot) as an index ``[*B]``.

    ``batch_dims`` is the number of dimensions of ``*B``: it distinguishes ``[*B, 1]`` from a batch that ends in 1.
    """
    if action_space == "one_hot":
        return action.long().argmax(-1)  # long, because argmax takes no bool
    action = action.squeeze(-1) if action.ndim > batch_dims else action
    return action if action.dtype == torch.int32 else action.long()  # gather takes no shorter integers


def gather_action(values: Tensor, index: Tensor) -> Tensor:
    """Entries ``[*B]`` of ``values [*B, A]`` at the actions ``index [*B]``."""
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def munchausen_bonus(tau_log_pi_a: Tensor, alpha: float | Tensor, clip_min: float | Tensor | None) -> Tensor:
    r"""Munchausen bonus :math:`\alpha \max(\tau \ln \pi(a|s), l_0)`, bounded below by ``alpha * clip_min``.

    The clip acts on ``tau * ln pi``, after the multiplication by ``tau``, and ``alpha`` multiplies
    what is left.

    Source: Vieillard et al. 2020 (Munchausen RL), who print :math:`[\tau \ln \pi(a|s)]_{l_0}^{0}`. The upper clip is
    not a setting but the fact that ``ln pi <= 0``: ``ln (pi / rho)`` of a prior and the logarithm of a density
    may be positive, and are not clipped there.

    Args:
        tau_log_pi_a: ``tau * ln pi`` of the taken actions ``[*B]``, in reward units.
        alpha: Munchausen weight, usually in [0, 1].
        clip_min: lower clip <= 0, in reward units; None does not clip.

    Returns:
        Bonus to add to the reward ``[*B]``, in reward units.

    Raises:
        ValueError: if ``clip_min`` is a number that is positive or NaN.
    """
    tau_log_pi_a = at_least_float32(tau_log_pi_a)
    if clip_min is None:
        clipped = tau_log_pi_a
    elif isinstance(clip_min, Tensor):
        clipped = torch.maximum(tau_log_pi_a, clip_min.to(tau_log_pi_a.dtype))
    elif clip_min <= 0.0:
        clipped = tau_log_pi_a.clamp(min=clip_min)
    else:
        raise ValueError(f"clip_min must be <= 0 or None, got {clip_min}.")
    return alpha * clipped


def action_gap(q: Tensor) -> Tensor:
    """Best minus second best action value, ``q_(1) - q_(2)``; 0 at a tie.

    Source: Farahmand 2011; Bellemare et al. 2016 (Increasing the action gap).

    Args:
        q: action values ``[*B, A]`` with ``A >= 2``, in reward units.

    Returns:
        Gaps ``[*B]``, in reward units; infinite where a single action is unmasked.

    Raises:
        ValueError: if there are fewer than two actions.
    """
    if q.shape[-1] < 2:
        raise ValueError(f"q must hold at least two actions, got shape {tuple(q.shape)}.")
    best, second = at_least_float32(q).topk(2, dim=-1).values.unbind(-1)
    return best - second


def finite_action_gap(q: Tensor) -> Tensor:
    """:func:`action_gap` of ``q [*B, A]``, ``[*B]``; 0 where there is one action, or a mask leaves one."""
    if q.shape[-1] < 2:
        return at_least_float32(q)[..., :1].sum(-1) * 0.0
    gap = action_gap(q)
    return torch.where(gap < torch.finfo(q.dtype).max / 16, gap, 0.0)  # a mask is the smallest number of q's dtype


def advantage_gap(q: Tensor, action: Tensor) -> Tensor:
    r"""Advantage gap :math:`\max_{a'} q(a') - q(a) \ge 0`, which advantage learning subtracts.

    Source: Baird 1999; Bellemare et al. 2016 (Increasing the action gap). Minus ``alpha``
    times it is the limit of the Munchausen bonus at temperature 0.

    Args:
        q: action values ``[*B, A]``, in reward units.
        action: indices ``[*B]``, int64.

    Returns:
        Gaps ``[*B]``, in reward units.

    Raises:
        ValueError: if ``action`` does not have the shape of ``q`` without its last dimension.
    """
    if action.shape != q.shape[:-1]:
        raise ValueError(
            f"action must have shape {tuple(q.shape[:-1])} (q without its last dimension), got {tuple(action.shape)}."
        )
    q = at_least_float32(q)
    return q.amax(-1) - gather_action(q, action)


def persistent_advantage_gap(q: Tensor, next_q: Tensor, action: Tensor, terminated: Tensor) -> Tensor:
    r"""The smaller of the action's gaps at this and at the next state.

    .. math:: \min(\max_{a'} q(s, a') - q(s, a), \max_{a'} q(s', a') - q(s', a))

    A terminal next state has no values, so the first gap is used alone there.

    Source: Bellemare et al. 2016 (Increasing the action gap), persistent advantage learning, in the
    form of pfrl's PAL (the second gap is not discounted). pfrl does not mask terminal states.

    Args:
        q: action values at s ``[*B, A]``, in reward units.
        next_q: action values at s' ``[*B, A]``, in reward units.
        action: indices of the actions taken at s ``[*B]``, int64.
        terminated: True where s' is terminal ``[*B]``, bool; truncation does not count.

    Returns:
        Gaps ``[*B]``, in reward units.

    Raises:
        ValueError: if ``action`` or ``terminated`` does not have the shape of ``q`` without its
            last dimension, or ``next_q`` not that of ``q``.
    """
    if terminated.shape != action.shape or next_q.shape != q.shape:
        raise ValueError(
            f"terminated must have the shape of action {tuple(action.shape)} and next_q that of q "
            f"{tuple(q.shape)}, got {tuple(terminated.shape)} and {tuple(next_q.shape)}."
        )
    gap = advantage_gap(q, action)
    return torch.where(terminated, gap, torch.minimum(gap, advantage_gap(next_q, action)))


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


def bellman_temperature(
    td_error: Tensor, scale: float | Tensor, *, exponent: float = 2.0, weights: Tensor | None = None
) -> Tensor:
    r"""Temperature :math:`\epsilon = \frac{c}{p} \frac{1}{B} \sum_b |\delta_b|^p` of a Q-function with TD errors delta.

    It is 0 only when every error is; the policy ``softmax(Q / epsilon)`` is then greedy. Estimated from sampled
    transitions, it is biased upwards by the variance of the target (with ``p = 2`` by ``c / 2`` of it), so it stays
    above 0 where transitions are random. Scaling the rewards by ``k`` scales it by ``k^p``, but Q only by ``k``: the
    policy keeps its shape if ``p = 1`` or if ``c`` is divided by ``k^(p - 1)``.

    Source: Fellows et al. 2019 (VIREL), definition of the residual error. The released code takes ``p = 2`` and ``c =
    2 beta_scale``, its port in softlearning ``c = beta_scale``.

    Args:
        td_error: ``delta = r + gamma V(s') - Q(s, a)`` ``[*B]``, in reward units.
        scale: ``c > 0``, in reward units to the power ``1 - p``.
        exponent: ``p >= 1``.
        weights: weight of each row ``[*B]``, >= 0, for instance a mask; None weighs all equally.

    Returns:
        The temperature, 0-dimensional.

    Raises:
        ValueError: if ``scale`` is a number that is not finite and > 0, or ``exponent`` is below 1.
    """
    if not isinstance(scale, Tensor) and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number > 0, got {scale}.")
    if not 1 <= exponent < math.inf:
        raise ValueError(f"exponent must be a finite number >= 1, got {exponent}.")
    error = at_least_float32(td_error)
    if weights is None:
        return scale / exponent * error.abs().pow(exponent).mean()
    # Rows of weight 0 may hold NaN, whose power would have a gradient of NaN.
    power = torch.where(weights > 0, error, 0.0).abs().pow(exponent)
    total = (weights * power).sum()
    return scale / exponent * total / weights.sum().to(power.dtype).clamp(min=torch.finfo(power.dtype).tiny)
