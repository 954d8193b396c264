"""Boltzmann policy over Q-values."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.regularizers import ActionPrior, Entropy, PriorKL, Regularizer
from torchrl_reg.regularizers.recorded import Recorded


class BoltzmannQActor(Recorded, TensorDictModuleBase):
    """Acts with a regularizer's policy: sampled under random exploration, greedy under deterministic exploration.

    With a temperature that is ``pi = softmax(q / tau)``; with a prior ``pi ~ rho exp(beta q)``, and greedy in that.

    Source: Haarnoja et al. 2017 (soft Q-learning); Grau-Moya et al. 2019 (MIRL) for the prior.

    Args:
        actor: any Q-value actor (:class:`~torchrl.modules.QValueActor`, :class:`QuantileQActor`); its parameters are
            shared, not copied. Actions are written in its encoding (categorical or one-hot).
        tau: temperature > 0, in reward units; short for ``regularizer=Entropy(tau)``.
        prior: an :class:`ActionPrior`, shared, not copied; short for ``regularizer=PriorKL(prior=prior)``.
        regularizer: any, shared, not copied: that of the loss, whose temperature the actor then follows.
        action_key, action_value_key: where the actor writes the action and its ``[*B, A]`` Q-values.

    Raises:
        ValueError: ``tau`` not > 0, or not exactly one of ``tau``, ``prior`` and ``regularizer``.

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
        regularizer: Regularizer | None = None,
        action_key: NestedKey = "action",
        action_value_key: NestedKey = "action_value",
    ) -> None:
        if [tau, prior, regularizer].count(None) != 2:
            raise ValueError(
                f"Either tau or prior or regularizer must be given, got tau={tau!r}, prior={prior!r} and "
                f"regularizer={regularizer!r}."
            )
        if not hasattr(actor, "in_keys"):
            raise ValueError(f"actor must be a Q-value actor, such as a QValueActor, got {type(actor).__name__}.")
        super().__init__()
        if regularizer is None:
            regularizer = PriorKL(prior=prior) if prior is not None else Entropy(tau)  # type: ignore[arg-type]
        self.regularizer = regularizer
        self.actor = actor
        self.action_key, self.action_value_key = action_key, action_value_key
        self.in_keys, self.out_keys = list(actor.in_keys), list(actor.out_keys)

    @property
    def tau(self) -> Tensor | None:
        """The current temperature, in reward units, if the regularizer has one."""
        return getattr(self.regularizer, "tau", None)

    @property
    def prior(self) -> ActionPrior | None:
        """That of the regularizer, if it has one."""
        return getattr(self.regularizer, "prior", None)

    @property
    def spec(self) -> Any:
        """The actor's spec."""
        return self.actor.spec

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.actor(tensordict)
        self.choose(tensordict)
        return tensordict

    def choose(self, state: Any) -> None:
        """The policy's action in place of the actor's, in a TensorDict or a dict of tensors that the actor has seen."""
        samples = explores()
        if not samples and type(self.regularizer).greedy is Regularizer.greedy:
            return  # the actor's own action
        q = state[self.action_value_key]
        action = sampled(self.regularizer.policy(q)) if samples else self.regularizer.greedy(q)
        state[self.action_key] = index = self._encoded(action, q, state[self.action_key])
        if "chosen_action_value" in self.out_keys:
            index = index.long().argmax(-1, keepdim=True) if index.shape == q.shape else index.unsqueeze(-1)
            state["chosen_action_value"] = q.gather(-1, index)

    def _encoded(self, action: Tensor, q: Tensor, like: Tensor) -> Tensor:
        if like.shape == q.shape:
            return torch.nn.functional.one_hot(action, q.shape[-1]).to(like.dtype)
        return action.to(like.dtype)


def explores() -> bool:
    """True under random exploration, which is also the default."""
    return exploration_type() in (ExplorationType.RANDOM, None)


def sampled(pi: Tensor) -> Tensor:
    """Actions ``[*B]`` drawn with probabilities ``pi [*B, A]``."""
    return torch.multinomial(pi.reshape(-1, pi.shape[-1]), 1).reshape(pi.shape[:-1])
