"""A distribution over a product of bins on a box, and the actors that use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Size, Tensor, nn
from torch.distributions import Categorical, Distribution, constraints, register_kl
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.modules.box_actor import ActionBins, BinBuffers, Bound, BoxActor, suffixed
from torchrl_reg.modules.q_actors import explores


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

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
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

    @property
    def mean_log_pi(self) -> Tensor:
        """``[*B]``: for each dimension the mean of ``ln pi`` over its bins, summed over the dimensions."""
        absent = self._table == -torch.inf
        return (self.log_pi.masked_fill(absent, 0.0).sum(-1) / (~absent).sum(-1)).sum(-1)

    def _perturbed(self, shape: Sequence[int]) -> Tensor:
        """Logits plus Gumbel noise, ``[*S, *B, D, K]``: their argmax is a sample. Neither loop nor host sync."""
        table = self._table
        noise = torch.empty(*shape, *table.shape, dtype=table.dtype, device=table.device).exponential_()
        return table - noise.log()

    def sample_index(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sampled bins, int64 ``[*S, *B, D]``."""
        with torch.no_grad():
            return self._perturbed(sample_shape).argmax(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Straight-through Gumbel-softmax: a sampled action forward, the gradient of the relaxed one backward.

        The relaxed action is the mean of the bins under ``softmax((logits + Gumbel) / straight_through_temperature)``.
        The forward value is exactly a bin; the gradient is biased. :meth:`log_prob` of the very tensor that comes back
        has the relaxed gradient too: that of a bin's log-probability alone has mean zero, so SAC's actor would get no
        entropy term.
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
        """Entropy ``[*B]`` in nats, exact, <= ``sum_d ln K_d``."""
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


class MulticategoricalActor(BoxActor):
    """Acts with ``pi(a|s) = prod_d softmax(x_d(s))[j_d(a)]``, a :class:`Multicategorical` with logits from ``network``.

    Writes the action (floating point ``[*B, D]``), its bins ``action_index`` (int64 ``[*B, D]``) and
    ``action_log_prob [*B]``. Random exploration samples, deterministic exploration takes the mode and
    ``ExplorationType.MEAN`` the expected action (with the index of the bin nearest to it).

    Source: Tang and Agrawal 2020 (Discretizing continuous action space for on-policy optimization).

    Args:
        network: from the in-keys to ``[*B, sum(num_bins)]`` logits.
        low, high: bounds of the actions, numbers or ``[D]``.
        num_bins: bins per dimension >= 2, a number or D of them.
        in_keys: observation keys. Default ``("observation",)``.
        action_key: where the action goes; the other keys are this one with ``_index`` and ``_log_prob`` appended.

    Attributes:
        stored_action_key: what a loss reads from replay, the action: its nearest bin is exactly the one that was
            played, and a collector's random warm-up (``init_random_frames``) writes it too, unlike the bins.
        index_key: where the bins go.

    Raises:
        ValueError: no network, fewer than 2 bins, an unbounded or empty box, logits of another width.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> actor = MulticategoricalActor(nn.Linear(4, 2 * 11), low=[-1.0, -2.0], high=[1.0, 2.0], num_bins=11)
    >>> td = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    >>> td["action"].shape, td["action_index"].shape, td["action_log_prob"].shape
    (torch.Size([8, 2]), torch.Size([8, 2]), torch.Size([8]))
    """

    distribution_class: type[Distribution] = Multicategorical
    torso_name = "network"

    def __init__(
        self,
        network: nn.Module,
        *,
        low: Bound,
        high: Bound,
        num_bins: int | Sequence[int],
        in_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__(network, in_keys, action_key)
        self.bins = BinBuffers(ActionBins.build(low, high, num_bins))
        self.index_key = suffixed(action_key, "_index")
        self.out_keys.insert(1, self.index_key)

    def logits(self, tensordict: TensorDictBase) -> Tensor:
        """``[*B, sum(num_bins)]`` logits; ``tensordict`` is left as it is."""
        return self._torso_outputs(tensordict)

    def get_dist(self, tensordict: TensorDictBase) -> Any:
        """The policy at the observations of ``tensordict``, which is left as it is: a :class:`Multicategorical`."""
        return Multicategorical(self.logits(tensordict), bins=self.bins())

    def outputs(self, state: Any) -> dict[NestedKey, Tensor]:
        dist = self.get_dist(state)
        if exploration_type() is ExplorationType.MEAN:
            action = dist.mean
            index = dist.index(action)
        else:
            index = dist.sample_index() if explores() else dist.mode_index
            action = dist.action(index)
        return {self.action_key: action, self.index_key: index, self.log_prob_key: dist.log_prob(index)}


class SingleDimensionActor(TensorDictModuleBase):
    """A :class:`MulticategoricalActor` with one action dimension, as an actor over its K bins.

    Its distribution is a plain ``Categorical`` over bin indices (probabilities ``[*B, K]``), so that TorchRL's discrete
    losses (:class:`~torchrl.objectives.DiscreteSACLoss`) can sum over all actions. The parameters are shared.

    Args:
        actor: the actor, with one action dimension.

    Attributes:
        stored_action_key: ``"action_index"``, which these losses read as ``[*B]``, without its last dimension.

    Raises:
        ValueError: another kind of actor, or one of several dimensions.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> actor = MulticategoricalActor(nn.Linear(4, 11), low=-1.0, high=1.0, num_bins=11)
    >>> SingleDimensionActor(actor).get_dist(TensorDict({"observation": torch.randn(8, 4)}, [8])).probs.shape
    torch.Size([8, 11])
    """

    def __init__(self, actor: MulticategoricalActor) -> None:
        super().__init__()
        if not isinstance(actor, MulticategoricalActor):
            raise ValueError(f"actor must be a MulticategoricalActor, got {type(actor).__name__}.")
        if isinstance(actor, AutoregressiveMulticategoricalActor):
            raise ValueError("actor must have independent dimensions, got an AutoregressiveMulticategoricalActor.")
        if len(actor.bins.num_bins) != 1:
            raise ValueError(f"actor must have one action dimension, got {len(actor.bins.num_bins)}.")
        self.actor = actor
        self.in_keys, self.out_keys = list(actor.in_keys), [actor.index_key]
        self.stored_action_key = actor.index_key

    def get_dist(self, tensordict: TensorDictBase) -> Categorical:
        """The policy over bin indices at the observations of ``tensordict``, which is left as it is."""
        return Categorical(logits=self.actor.logits(tensordict), validate_args=False)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.actor(tensordict)


class AutoregressiveMulticategorical(BinDistribution):
    r"""Bins chosen one dimension at a time: :math:`\pi(a) = \prod_d \pi_d(a^d | a^{<d})`.

    Get it from :meth:`AutoregressiveMulticategoricalActor.get_dist`. :meth:`log_prob` takes one pass of the head,
    sampling D short ones. ``mean``, ``mode`` and ``entropy`` (nats) have no closed form; :meth:`entropy` is an
    estimate.

    Source: Metz et al. 2017 (Discrete sequential prediction of continuous actions for deep RL).

    Args:
        hidden: ``[*B, D H]`` the state's part of the hidden units.
        previous: ``[D H, sum(num_bins)]`` masked weights from the one-hot bins to the hidden units.
        weight, bias: ``[sum(num_bins), D H]`` (masked) and ``[sum(num_bins)]``, from hidden units to logits.
        starts: ``[D]`` first logit of each dimension.
        bins: the bins.
    """

    arg_constraints = {"hidden": constraints.real_vector}
    has_rsample = False
    entropy_is_estimated = True

    def __init__(
        self, hidden: Tensor, previous: Tensor, weight: Tensor, bias: Tensor, starts: Tensor, bins: ActionBins
    ) -> None:
        self.hidden, self.previous, self.weight, self.bias = hidden, previous, weight, bias
        self.starts = starts
        super().__init__(hidden.shape[:-1], bins)

    def conditionals(self, value: Tensor) -> Multicategorical:
        """The D conditionals ``pi_d(. | a^{<d})`` along ``value`` (bins or actions ``[*S, *B, D]``), in one pass."""
        index = self._index_of(value)
        shape = torch.broadcast_shapes(index.shape[:-1], self._batch_shape)
        index = index.expand(*shape, -1)
        one_hot = torch.zeros(*shape, self.bins.width, dtype=self.hidden.dtype, device=index.device)
        one_hot = one_hot.scatter(-1, index + self.starts, 1.0)
        hidden = self.hidden + F.linear(one_hot, self.previous)
        return Multicategorical(F.linear(hidden.relu(), self.weight, self.bias), bins=self.bins)

    def log_prob(self, value: Tensor) -> Tensor:
        """``ln pi [*S, *B]`` of bins (integer ``[*S, *B, D]``) or actions (floating point, rounded to the nearest bin).

        Raises:
            ValueError: ``value`` of another width.
        """
        index = self._index_of(value)
        return self.conditionals(index).log_prob(index)

    def sample_index(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sampled bins, int64 ``[*S, *B, D]``."""
        return self._draw(sample_shape, greedy=False)

    @property
    def mode_index(self) -> Tensor:
        """Bins ``[*B, D]`` chosen greedily one dimension at a time, as ``deterministic_sample`` does.

        **Not the mode** of the joint policy: the likeliest first bin may lead to unlikely pairs.
        """
        return self._draw((), greedy=True)

    @property
    def mean(self) -> NoReturn:
        raise NotImplementedError("An autoregressive policy has no closed-form mean: average samples instead.")

    def entropy(self) -> Tensor:
        """An estimate ``[*B]`` from one sample, in nats, not a closed form: :meth:`entropy_estimate`.

        It is here for the entropy bonus of TorchRL's PPO and A2C: the ``-ln pi`` of a sample, which they take where a
        class has no entropy, has a gradient whose mean is zero for actions that carry none.
        """
        return self.entropy_estimate()

    def entropy_estimate(self, num_samples: int = 1) -> Tensor:
        """Estimate ``[*B]`` of the entropy in nats: ``sum_d H(pi_d(. | a^{<d}))`` averaged over sampled ``a``.

        Unbiased by the chain rule, with less variance than ``-ln pi(a)``. So is its gradient, which has a term
        ``H(pi_d) grad ln pi(a^{<d})`` for the sampled conditions.
        """
        index = self.sample_index((num_samples,))
        conditionals = self.conditionals(index)
        log_pi = conditionals.log_pi
        chosen = log_pi.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        before = chosen.cumsum(-1) - chosen  # ln pi(a^{<d})
        parts = torch.special.entr(conditionals.probs.detach()).sum(-1)
        score = (before - before.detach()) * parts  # 0, but for its gradient
        return (conditionals.entropy() + score.sum(-1)).mean(0)

    def _draw(self, shape: Sequence[int], *, greedy: bool) -> Tensor:
        with torch.no_grad():
            hidden = self.hidden.expand(*shape, *self.hidden.shape)
            by_bin = self.previous.t()
            rows = zip(self.weight.split(self.bins.num_bins), self.bias.split(self.bins.num_bins), strict=True)
            chosen = []
            for d, (weight, bias) in enumerate(rows):
                logits = F.linear(hidden.relu(), weight, bias)
                # Gumbel-max, see Multicategorical.
                noise = 0.0 if greedy else torch.empty_like(logits).exponential_().log()
                j = (logits - noise).argmax(-1)
                hidden = hidden + F.embedding(j + self.starts[d], by_bin)
                chosen.append(j)
            return torch.stack(chosen, -1)


class AutoregressiveMulticategoricalActor(MulticategoricalActor):
    r"""Acts with :math:`\pi(a|s) = \prod_d \pi_d(a^d | a^{<d}, s)` over bins.

    Source: Metz et al. 2017 (1705.05035); the masks of Germain et al. 2015 (MADE).

    The torso runs once per state. The head has one hidden layer of ``num_cells`` ReLU units per dimension, with MADE's
    masks (Germain et al., 2015): units of dimension d see the features and the one-hot bins of dimensions before d;
    logits of dimension d see the units of dimensions up to d. Hence the log-probability of stored bins takes one pass,
    sampling D short ones. Keys and exploration as for :class:`MulticategoricalActor`; deterministic exploration is
    greedy one dimension at a time, which is **not the mode**; ``ExplorationType.MEAN`` is not available.

    Args:
        torso: from the in-keys to features ``[*B, num_features]``.
        num_features: their number F.
        low, high: bounds of the actions, numbers or ``[D]``.
        num_bins: bins per dimension >= 2, a number or D of them.
        num_cells: hidden units per action dimension.
        condition: False cuts the dependence on earlier dimensions: a factorized policy of the same size.
        in_keys, action_key: as for :class:`MulticategoricalActor`.

    Raises:
        ValueError: no torso, fewer than 2 bins, an unbounded or empty box, ``num_cells`` or ``num_features`` < 1.

    >>> from tensordict import TensorDict
    >>> actor = AutoregressiveMulticategoricalActor(nn.Linear(4, 16), 16, low=[-1.0] * 3, high=[1.0] * 3, num_bins=5)
    >>> td = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    >>> td["action_index"].shape, actor.get_dist(td).log_prob(td["action_index"]).shape
    (torch.Size([8, 3]), torch.Size([8]))
    """

    distribution_class = AutoregressiveMulticategorical
    previous_mask: Tensor
    output_mask: Tensor
    starts: Tensor

    def __init__(
        self,
        torso: nn.Module,
        num_features: int,
        *,
        low: Bound,
        high: Bound,
        num_bins: int | Sequence[int],
        num_cells: int = 64,
        condition: bool = True,
        in_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
    ) -> None:
        if num_cells < 1 or num_features < 1:
            raise ValueError(f"num_cells and num_features must be >= 1, got {num_cells} and {num_features}.")
        super().__init__(torso, low=low, high=high, num_bins=num_bins, in_keys=in_keys, action_key=action_key)
        counts = torch.tensor(self.bins.num_bins)
        dims = len(counts)
        of_bin = torch.arange(dims).repeat_interleave(counts)
        of_unit = torch.arange(dims).repeat_interleave(num_cells)
        self.features = nn.Linear(num_features, dims * num_cells)
        self.previous = nn.Linear(len(of_bin), dims * num_cells, bias=False)
        self.output = nn.Linear(dims * num_cells, len(of_bin))
        self.condition = condition
        before = of_bin < of_unit.unsqueeze(-1) if condition else torch.zeros(len(of_unit), len(of_bin))
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("previous_mask", before.float(), persistent=False)
        self.register_buffer("output_mask", (of_unit <= of_bin.unsqueeze(-1)).float(), persistent=False)
        self.to(next((p.dtype for p in getattr(self, self.torso_name).parameters()), self.output.weight.dtype))

    def logits(self, tensordict: TensorDictBase) -> Tensor:
        raise NotImplementedError(
            "The logits of an autoregressive policy depend on the action: use get_dist(td).conditionals(action)."
        )

    def get_dist(self, tensordict: TensorDictBase) -> AutoregressiveMulticategorical:
        """The policy at the observations of ``tensordict``, which is left as it is."""
        return AutoregressiveMulticategorical(
            self.features(self._torso_outputs(tensordict)),
            self.previous.weight * self.previous_mask,
            self.output.weight * self.output_mask,
            self.output.bias,
            self.starts,
            self.bins(),
        )
