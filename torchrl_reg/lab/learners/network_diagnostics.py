"""Diagnostics of a Q-network: the change of its policy by an update, and the part of its features in use."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_reg.compat import entry
from torchrl_reg.lab.learners.update import Update
from torchrl_reg.lab.run.evaluation import in_eval_mode


def with_network_diagnostics(update: Update, actor: Any, is_due: Callable[[], bool]) -> Update:
    """``update``, which where ``is_due()`` also returns, of the states of its minibatch:

    - ``policy_churn``: the share whose greedy action the update changes (Schaul et al., "The Phenomenon of Policy
      Churn", NeurIPS 2022).
    - ``action_swaps``: the share of its transitions, but those that terminate, whose greedy action at s' (n steps on,
      of n-step returns) is another than at s, after the update; of minibatches that hold s'.
    - ``effective_rank``: the least k such that the k largest singular values of the features, the inputs of the last
      linear layer, make up 99% of the sum of all (Kumar et al., "Implicit Under-Parameterization", ICLR 2021).
    - ``dead_units``: the share of these features that are zero (or less) in every row.

    Two passes of ``actor``, a Q-value actor, in eval mode: without noise, random fractions and exploration, so that
    learning is the same with and without them.
    """

    def watched(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        if not is_due():
            return update(minibatch)
        states, following = minibatch.select(*actor.in_keys), entry(minibatch, "next")
        before, features = _greedy_and_features(actor, states)
        scalars = update(minibatch)
        if following is not None:
            states = torch.cat([states, following.select(*actor.in_keys)])
        after, *later = _greedy_and_features(actor, states)[0].split(len(before))
        scalars["policy_churn"] = (before != after).to(features.dtype).mean()
        if following is not None:
            going = ~entry(following, "terminated").reshape(after.shape)
            scalars["action_swaps"] = ((later[0] != after) & going).sum() / going.sum().clamp(min=1)
        scalars["effective_rank"] = effective_rank(features).to(features.dtype)
        scalars["dead_units"] = (features <= 0).all(0).to(features.dtype).mean()
        return scalars

    return watched


def effective_rank(features: Tensor, share: float = 0.99) -> Tensor:
    """The least k such that the k largest singular values of ``features [R, F]`` make up ``share`` of their sum.

    >>> effective_rank(torch.diag(torch.tensor([98.0, 1.5, 0.5])))
    tensor(2)
    """
    values = torch.linalg.svdvals(features.float())
    return (values.cumsum(0) < share * values.sum()).sum() + 1


def _greedy_and_features(actor: Any, states: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Greedy actions ``[*B]`` and features ``[R, F]``."""
    last = [module for module in actor.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with handle, torch.no_grad(), in_eval_mode(actor):
        q = actor(states.copy())["action_value"]
    return q.argmax(-1), seen[0].flatten(0, -2)
