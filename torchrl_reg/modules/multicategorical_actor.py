"""Actors whose actions are bins of a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.modules.box_actor import ActionBins, BinBuffers, Bound, BoxActor, suffixed
from torchrl_reg.modules.multicategorical import Multicategorical
from torchrl_reg.modules.q_actors import explores


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

    def acted(self, state: Any) -> dict[NestedKey, Tensor]:
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
        actor: the actor to look at.

    Attributes:
        stored_action_key: ``"action_index"``, which these losses want as ``[*B]``, without its last dimension.

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
        if len(actor.bins.num_bins) != 1:
            raise ValueError(f"actor must have one action dimension, got {len(actor.bins.num_bins)}.")
        self.actor = actor
        self.in_keys, self.out_keys = list(actor.in_keys), [actor.index_key]
        self.stored_action_key = actor.index_key

    def get_dist(self, tensordict: TensorDictBase) -> Categorical:
        """The policy over bin indices at the observations of ``tensordict``, which is left as it is."""
        return Categorical(logits=self.actor.logits(tensordict), validate_args=False)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.actor(tensordict)
