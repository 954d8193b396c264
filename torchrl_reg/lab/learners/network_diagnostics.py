"""Diagnostics of a Q-network around an update: policy churn, action swaps, rank of the features, dead units."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_reg.compat import entry
from torchrl_reg.lab.learners.update import Update
from torchrl_reg.lab.run.evaluation import in_eval_mode


def with_network_diagnostics(update: Update, actor: TensorDictModuleBase, is_due: Callable[[], bool]) -> Update:
    """Wraps ``update`` so that, when ``is_due()``, it also returns for the states of its minibatch:

    - ``policy_churn``: fraction of states whose greedy action the update changes (Schaul et al., "The Phenomenon of
      Policy Churn", NeurIPS 2022).
    - ``action_swaps``: fraction of non-terminal transitions whose greedy actions at s and s' differ after the update
      (for n-step returns s' is n steps later); only for minibatches with s'.
    - ``effective_rank``: smallest k such that the k largest singular values of the features, the inputs of the last
      linear layer, sum to 99% of all (Kumar et al., "Implicit Under-Parameterization", ICLR 2021).
    - ``dead_units``: fraction of these features that are zero or negative in every row.

    Costs two passes of ``actor``, a Q-value actor, in eval mode: no noise, random fractions or exploration, so that
    training draws the same random numbers with and without diagnostics.
    """

    def update_with_diagnostics(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        if not is_due():
            return update(minibatch)
        states, next_states = minibatch.select(*actor.in_keys), entry(minibatch, "next")
        before, features = _greedy_and_features(actor, states)
        scalars = update(minibatch)
        if next_states is not None:
            states = torch.cat([states, next_states.select(*actor.in_keys)])
        after, *next_greedy = _greedy_and_features(actor, states)[0].split(len(before))
        scalars["policy_churn"] = (before != after).to(features.dtype).mean()
        if next_states is not None:
            running = ~entry(next_states, "terminated").reshape(after.shape)
            scalars["action_swaps"] = ((next_greedy[0] != after) & running).sum() / running.sum().clamp(min=1)
        scalars["effective_rank"] = effective_rank(features).to(features.dtype)
        scalars["dead_units"] = (features <= 0).all(0).to(features.dtype).mean()
        return scalars

    return update_with_diagnostics


def effective_rank(features: Tensor, share: float = 0.99) -> Tensor:
    """Smallest k such that the k largest singular values of ``features [R, F]`` sum to ``share`` of all.

    >>> effective_rank(torch.diag(torch.tensor([98.0, 1.5, 0.5])))
    tensor(2)
    """
    values = torch.linalg.svdvals(features.float())
    return (values.cumsum(0) < share * values.sum()).sum() + 1


def _greedy_and_features(actor: TensorDictModuleBase, states: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Greedy actions ``[*B]`` and features ``[R, F]``."""
    last = [module for module in actor.modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with handle, torch.no_grad(), in_eval_mode(actor):
        q = actor(states.copy())["action_value"]
    return q.argmax(-1), features[0].flatten(0, -2)
