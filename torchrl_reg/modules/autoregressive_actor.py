"""A policy over bins in which each dimension depends on those before it.

Shapes: ``*B`` batch, ``*S`` sample shape, ``D`` action dimensions, ``H`` hidden units per dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from torchrl_reg.modules.box_actor import ActionBins, Bound
from torchrl_reg.modules.multicategorical import BinDistribution, Multicategorical
from torchrl_reg.modules.multicategorical_actor import MulticategoricalActor


class AutoregressiveMulticategorical(BinDistribution):
    r"""Bins chosen one dimension at a time: :math:`\pi(a) = \prod_d \pi_d(a^d | a^{<d})`.

    Get it from :meth:`AutoregressiveMulticategoricalActor.get_dist`. :meth:`log_prob` takes one pass of the head,
    sampling D short ones. ``mean``, ``mode`` and ``entropy`` (nats) have no closed form; :meth:`entropy` is an
    estimate.

    Source: Metz et al. 2017 (Discrete sequential prediction of continuous actions for deep RL).

    Args:
        hidden: ``[*B, D H]`` what the state adds to the hidden units.
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
        """Bins ``[*B, D]`` chosen greedily one dimension at a time, as ``deterministic_sample`` does. **Not the
        mode** of the joint policy: the likeliest first bin may lead to unlikely pairs."""
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
