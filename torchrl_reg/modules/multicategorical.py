"""A product of categorical distributions over the bins of a box.

Shapes: ``*B`` batch, ``*S`` sample shape, ``D`` action dimensions, ``K`` bins of the dimension with most of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Distribution, constraints, register_kl

from torchrl_reg.modules.box_actor import ActionBins, Bound


class BinDistribution(Distribution):
    """Base of the distributions over the bins of a box, whose event is the floating-point action ``[*B, D]``.

    A subclass has :meth:`sample_index` and :attr:`mode_index`.

    Args:
        batch_shape: ``*B``.
        bins: the bins.
    """

    def __init__(self, batch_shape: Size, bins: ActionBins) -> None:
        self.bins = bins
        super().__init__(batch_shape, Size((len(bins.num_bins),)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The box (only its bins have probability)."""
        return constraints.independent(constraints.interval(self.bins.low, self.bins.high), 1)

    def action(self, index: Tensor) -> Tensor:
        """Actions ``[*B, D]`` of the bins ``index [*B, D]``."""
        return self.bins.action(index)

    def index(self, action: Tensor) -> Tensor:
        """The nearest bin (int64 ``[*B, D]``) of each action; actions outside the box fall on its border."""
        return self.bins.index(action)

    def sample_index(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sampled bins, int64 ``[*S, *B, D]``."""
        raise NotImplementedError

    @property
    def mode_index(self) -> Tensor:
        """The bins ``[*B, D]`` that deterministic exploration takes."""
        raise NotImplementedError

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        """Sampled actions ``[*S, *B, D]``."""
        return self.action(self.sample_index(sample_shape))

    @property
    def deterministic_sample(self) -> Tensor:
        """The action ``[*B, D]`` of :attr:`mode_index`: what TorchRL's actors take under deterministic exploration."""
        return self.action(self.mode_index)

    def _index_of(self, value: Tensor) -> Tensor:
        """Bins of ``value``, which are bins (integer) or actions (floating point)."""
        if value.shape[-1:] != self._event_shape:
            raise ValueError(f"value must have shape [*B, {self._event_shape[0]}], got {list(value.shape)}.")
        return self.bins.index(value) if value.is_floating_point() else value.long()


class Multicategorical(BinDistribution):
    r"""Independent bins per action dimension: :math:`\ln\pi(a) = \sum_d \ln\mathrm{softmax}(x_d)_{j_d(a)}`.

    The event is the floating-point action ``[*B, D]`` in the box ``[low, high]``, so that any actor and environment
    takes it; everything is computed on bin indices (int64 ``[*B, D]``). Probabilities are of bins, not densities;
    log-probabilities and entropies are in nats.

    Source: the policy of implicit Q-learning (IQ, M-IQ) on continuous actions, 11 bins per dimension there.

    Args:
        logits: ``[*B, sum(num_bins)]``, unnormalized, the dimensions one after the other.
        low, high: bounds, numbers or ``[D]``.
        num_bins: bins per dimension >= 2, a number or D of them. If all three are numbers, D follows from the logits.
        bins: instead of ``low``, ``high`` and ``num_bins``: their table, built once (building it costs more than all
            the rest).

    Attributes:
        straight_through_temperature: of :meth:`rsample`, default 1.

    Raises:
        ValueError: fewer than 2 bins, an unbounded or empty box, logits of another width.

    >>> dist = Multicategorical(torch.zeros(4, 6), low=-1.0, high=1.0, num_bins=3)
    >>> dist.sample().shape, dist.log_prob(torch.tensor([-1.0, 0.1])).shape
    (torch.Size([4, 2]), torch.Size([4]))
    >>> dist.index(torch.tensor([-1.0, 0.1]))
    tensor([0, 1])
    """

    arg_constraints = {"logits": constraints.real_vector}
    has_rsample = True
    straight_through_temperature: float = 1.0

    def __init__(
        self,
        logits: Tensor,
        low: Bound | None = None,
        high: Bound | None = None,
        num_bins: int | Sequence[int] | None = None,
        *,
        bins: ActionBins | None = None,
    ) -> None:
        if bins is None:
            bins = _bins_for(logits, low, high, num_bins)
        elif low is not None or high is not None or num_bins is not None:
            raise ValueError("Multicategorical needs either low, high and num_bins, or bins, got both.")
        if logits.shape[-1] != bins.width:
            raise ValueError(
                f"logits must have one entry per bin ({bins.width} for num_bins={list(bins.num_bins)}), "
                f"got shape {list(logits.shape)}."
            )
        self.logits = logits
        self._table = bins.split(logits)
        self._log_pi: Tensor | None = None
        self._relaxed: tuple[Tensor, Tensor] | None = None  # the last rsample, and its bins in relaxed one-hot form
        super().__init__(logits.shape[:-1], bins)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Multicategorical:
        """The same distribution with batch shape ``batch_shape``."""
        return Multicategorical(self.logits.expand(*batch_shape, -1), bins=self.bins)

    @property
    def log_pi(self) -> Tensor:
        """``[*B, D, K]`` log-probabilities of the bins; -inf where a dimension has fewer than K."""
        if self._log_pi is None:
            self._log_pi = self._table.log_softmax(-1)
        return self._log_pi

    @property
    def probs(self) -> Tensor:
        """``[*B, D, K]`` probabilities of the bins; 0 where a dimension has fewer than K."""
        return self.log_pi.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """``ln pi [*S, *B]`` of bins (integer ``[*S, *B, D]``) or actions (floating point, rounded to the nearest bin).

        Raises:
            ValueError: ``value`` of another width.
        """
        if self._relaxed is not None and value is self._relaxed[0]:
            # 0 where a dimension has fewer bins: there the logarithm is -inf.
            return (self._relaxed[1] * self.log_pi.masked_fill(self._table == -torch.inf, 0.0)).sum((-1, -2))
        index, log_pi = self._index_of(value), self.log_pi
        if index.shape != log_pi.shape[:-1]:
            shape = torch.broadcast_shapes(index.shape, log_pi.shape[:-1])
            index, log_pi = index.expand(shape), log_pi.expand(*shape, -1)
        return log_pi.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)

    def _perturbed(self, shape: Sequence[int]) -> Tensor:
        """Logits plus Gumbel noise, ``[*S, *B, D, K]``: their argmax is a sample. Neither loop nor host sync."""
        table = self._table
        noise = torch.empty(*shape, *table.shape, dtype=table.dtype, device=table.device).exponential_()
        return table - noise.log()

    def sample_index(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sampled bins, int64 ``[*S, *B, D]``."""
        with torch.no_grad():
            return self._perturbed(sample_shape).argmax(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        """Straight-through Gumbel-softmax: a sampled action forward, the gradient of the relaxed one backward.

        The relaxed action is the mean of the bins under ``softmax((logits + Gumbel) / straight_through_temperature)``.
        The forward value is exactly a bin; the gradient is biased. :meth:`log_prob` of the very tensor that comes back
        has the relaxed gradient too: that of a bin's log-probability alone is zero in mean, and would leave SAC's
        actor without its entropy term.
        """
        if not torch.is_grad_enabled():
            return self.sample(sample_shape)
        perturbed = self._perturbed(sample_shape)
        index = perturbed.detach().argmax(-1)
        soft = (perturbed / self.straight_through_temperature).softmax(-1)
        difference = soft - soft.detach()
        chosen = F.one_hot(index, soft.shape[-1]).to(soft.dtype) + difference
        action = self.action(index) + (difference * self.bins.values).sum(-1)
        self._relaxed = (action, chosen)
        return action

    @property
    def mode_index(self) -> Tensor:
        """The likeliest bin of each dimension, int64 ``[*B, D]``."""
        return self._table.argmax(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest action ``[*B, D]``."""
        return self.action(self.mode_index)

    @property
    def mean(self) -> Tensor:
        """The expected action ``[*B, D]``, which is a bin only by accident."""
        return (self.probs * self.bins.values).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance ``[*B, D]`` of the action."""
        return (self.probs * (self.bins.values - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def log_normalizer(self) -> Tensor:
        """``sum_d logsumexp(logits_d) [*B]`` of the raw logits: the soft value of a network read as action values."""
        return self._table.logsumexp(-1).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy ``[*B]`` in nats, exact; at most ``sum_d ln K_d``."""
        return -_expectation(self.probs, self.log_pi)


def _expectation(pi: Tensor, x: Tensor) -> Tensor:
    """``sum_d sum_j pi x [*B]`` with ``0 * (-inf) = 0``, in the gradient too."""
    return (pi * torch.where(pi > 0, x, 0.0)).sum((-2, -1))


@register_kl(Multicategorical, Multicategorical)
def _kl_multicategorical(p: Multicategorical, q: Multicategorical) -> Tensor:
    if p.bins.num_bins != q.bins.num_bins:
        raise ValueError(
            f"kl_divergence needs the same bins on both sides, got num_bins={list(p.bins.num_bins)} and "
            f"{list(q.bins.num_bins)}."
        )
    return _expectation(p.probs, p.log_pi - q.log_pi)


def _bins_for(logits: Tensor, low: Any, high: Any, num_bins: Any) -> ActionBins:
    if low is None or high is None or num_bins is None:
        raise ValueError("Multicategorical needs low, high and num_bins, or bins, got neither.")
    low, high = (
        x.to(logits.device)
        if isinstance(x, Tensor) and x.is_floating_point()
        else torch.as_tensor(x, dtype=logits.dtype, device=logits.device)
        for x in (low, high)
    )
    if isinstance(num_bins, int) and num_bins > 0 and low.ndim == high.ndim == 0:
        num_bins = [num_bins] * max(1, logits.shape[-1] // num_bins)
    return ActionBins.build(low, high, num_bins)
