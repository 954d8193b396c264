"""Boltzmann policy over Q-values."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.functional import soft_policy
from torchrl_reg.modules.action_prior import ActionPrior


class BoltzmannQActor(TensorDictModuleBase):
    """Acts with ``pi = softmax(q / tau)``: sampled under random exploration, greedy under deterministic exploration.

    With a prior, ``pi ~ rho exp(beta q)``, and greedy in that.

    Args:
        actor: any Q-value actor (:class:`~torchrl.modules.QValueActor`, :class:`QuantileQActor`); its parameters are
            shared, not copied. Actions are written in its encoding (categorical or one-hot).
        tau: temperature > 0, in reward units. A buffer: ``actor.tau.fill_(x)`` anneals it.
        prior: instead of ``tau``: an :class:`ActionPrior`, shared, not copied.
        action_key, action_value_key: where the actor writes the action and its ``[*B, A]`` Q-values.

    Raises:
        ValueError: ``tau`` not > 0, or both or none of ``tau`` and ``prior``.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> policy = BoltzmannQActor(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), tau=0.5)
    >>> policy(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        actor: Any,
        *,
        tau: float | None = None,
        prior: ActionPrior | None = None,
        action_key: NestedKey = "action",
        action_value_key: NestedKey = "action_value",
    ) -> None:
        if (tau is None) == (prior is None):
            raise ValueError(f"Either tau or prior must be given, got tau={tau!r} and prior={prior!r}.")
        if tau is not None and not tau > 0:
            raise ValueError(f"tau must be > 0 (the temperature, in reward units), got {tau!r}.")
        super().__init__()
        self.actor = actor
        self.action_key, self.action_value_key = action_key, action_value_key
        self.in_keys, self.out_keys = list(actor.in_keys), list(actor.out_keys)
        self.prior = prior
        self.register_buffer("tau", None if tau is None else torch.tensor(float(tau)))

    @property
    def spec(self) -> Any:
        """The actor's spec."""
        return self.actor.spec

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.actor(tensordict)
        samples = exploration_type() in (ExplorationType.RANDOM, None)
        if not samples and self.prior is None:
            return tensordict
        q = tensordict.get(self.action_value_key)
        action = self._sampled(q) if samples else self.prior.greedy(q)  # type: ignore[union-attr]
        tensordict.set(self.action_key, self._encoded(action, q, tensordict.get(self.action_key)))
        if "chosen_action_value" in self.out_keys:
            index = tensordict.get(self.action_key)
            index = index.long().argmax(-1, keepdim=True) if index.shape == q.shape else index.unsqueeze(-1)
            tensordict.set("chosen_action_value", q.gather(-1, index))
        return tensordict

    def _sampled(self, q: Tensor) -> Tensor:
        pi = soft_policy(q, self.tau) if self.prior is None else self.prior.policy(q)
        return torch.multinomial(pi.reshape(-1, pi.shape[-1]), 1).reshape(pi.shape[:-1])

    def _encoded(self, action: Tensor, q: Tensor, like: Tensor) -> Tensor:
        if like.shape == q.shape:
            return torch.nn.functional.one_hot(action, q.shape[-1]).to(like.dtype)
        return action.to(like.dtype)
