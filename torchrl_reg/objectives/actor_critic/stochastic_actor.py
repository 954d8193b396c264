"""Actors and values V(s) as the policy losses read them, and statistics of an actor's distributions.

Shapes: ``*B`` batch.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.modules.tensordict_module import SafeProbabilisticModule

from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import Multicategorical
from torchrl_reg.modules.autoregressive_actor import AutoregressiveMulticategorical
from torchrl_reg.modules.critic_ensemble import is_plain
from torchrl_reg.modules.flow_actor import FlowDistribution
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.torchrl_compat import entry


def check_actor(actor: Any) -> None:
    """Raise ValueError unless ``actor`` can compute the log-probability of stored actions."""
    if not hasattr(actor, "get_dist"):
        raise ValueError(
            "actor_network must give the log_prob of stored actions through get_dist(tensordict), as a "
            f"ProbabilisticActor and the actors of torchrl_reg.modules do, got {type(actor).__name__}."
        )


def check_value_network(network: Any) -> None:
    """Raise ValueError unless ``network`` is a TensorDict module."""
    if not isinstance(network, TensorDictModuleBase):
        raise ValueError(
            "value_network must be a TensorDict module that writes V [*B, 1], such as a ValueOperator, got "
            f"{type(network).__name__}."
        )


def stored_action_key(actor: Any) -> NestedKey:
    """The key under which a replay buffer keeps the actions of ``actor``."""
    return getattr(actor, "stored_action_key", "action")


def stored_action(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """The stored action.

    Raises:
        KeyError: ``tensordict`` has none under ``key``.
    """
    action = tensordict.get(key, None)
    if action is None:
        raise KeyError(
            f"data must have an entry {key!r}, where the loss looks for the stored action, got none; name another "
            "with loss.set_keys(action=...)."
        )
    return action.long() if action.dtype == torch.bool else action  # one-hot, as TorchRL's spec stores it


def state_value(network: TensorDictModuleBase, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """``V [*B]`` of the states of ``tensordict``, which is not modified; the network writes it to ``key``."""
    return at_least_float32(network(tensordict.select(*network.in_keys)).get(key).squeeze(-1))


def distribution(actor: Any, tensordict: TensorDictBase) -> Distribution:
    """The actor's distribution at the states of ``tensordict``, which is not modified."""
    # RANDOM, as in SACLoss: under the type that LossModule sets, some distributions only return a mode.
    with set_exploration_type(ExplorationType.RANDOM):
        parts = _plain_parts(actor)
        if parts is not None:  # the same without the TensorDicts in between
            network, head = parts
            outputs = layer_by_layer(network.module)(*[entry(tensordict, key) for key in network.in_keys])
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            return head.get_dist(dict(zip(network.out_keys, outputs, strict=False)))
        return actor.get_dist(tensordict.select(*actor.in_keys, strict=False))


def _plain_parts(actor: Any) -> tuple[Any, Any] | None:
    """A network and the distribution of its outputs, where the actor is nothing more."""
    if type(actor) is not ProbabilisticActor or len(actor.module) != 2:
        return None
    network, head = actor.module
    plain = is_plain(network) and type(head) is SafeProbabilisticModule and set(head.in_keys) <= set(network.out_keys)
    return (network, head) if plain else None


def log_prob(dist: Distribution, action: Tensor, batch_size: torch.Size) -> Tensor:
    """Log-probability of stored actions ``[*B]``, in nats.

    Raises:
        ValueError: the distribution scores each dimension of the action separately.
    """
    result = dist.log_prob(action)
    if result.shape != batch_size:
        raise ValueError(
            f"actor_network's distribution must give one log_prob per action, shape {tuple(batch_size)}, got "
            f"{tuple(result.shape)} (wrap it in torch.distributions.Independent)."
        )
    return result


def closed_entropy(dist: Distribution) -> Tensor | None:
    """Entropy ``[*B]`` in nats, without a gradient, if the distribution has it in closed form, else None."""
    if getattr(dist, "entropy_is_estimated", False):
        return None
    with torch.no_grad():
        try:
            return dist.entropy()
        except NotImplementedError:
            return None


def kl_or_estimate(dist: Distribution, reference: Distribution) -> Tensor:
    """KL(dist || reference) ``[*B]`` in nats: in closed form, else from one sample of ``dist`` per state."""
    # Written out for the usual policies: PyTorch's dispatch to a closed form breaks a compiled graph, and for squashed
    # Gaussians it compares the squashes on the host (both come from one actor, so they cancel).
    if isinstance(dist, TanhNormal) and isinstance(reference, TanhNormal):
        dist, reference = dist.base_dist, reference.base_dist
    if isinstance(dist, Independent) and isinstance(reference, Independent):
        kl = kl_or_estimate(dist.base_dist, reference.base_dist)
        return kl.flatten(-dist.reinterpreted_batch_ndims).sum(-1) if dist.reinterpreted_batch_ndims else kl
    if isinstance(dist, Normal) and isinstance(reference, Normal):
        ratio, shift = dist.scale / reference.scale, (dist.loc - reference.loc) / reference.scale
        return 0.5 * (ratio.square() + shift.square() - 1) - ratio.log()
    if isinstance(dist, Categorical) and isinstance(reference, Categorical):
        return _expected_difference(dist.probs, dist.logits, reference.logits).sum(-1)
    if isinstance(dist, Multicategorical) and isinstance(reference, Multicategorical):
        return _expected_difference(dist.probs, dist.log_pi, reference.log_pi).sum((-2, -1))
    if not isinstance(dist, FlowDistribution | AutoregressiveMulticategorical):
        with contextlib.suppress(NotImplementedError):
            return torch.distributions.kl_divergence(dist, reference)
    action = dist.sample()
    return dist.log_prob(action) - reference.log_prob(action)


def _expected_difference(pi: Tensor, log_pi: Tensor, log_reference: Tensor) -> Tensor:
    """``pi (ln pi - ln reference)``, 0 where ``pi`` is."""
    return pi * torch.where(pi > 0, log_pi - log_reference, 0.0)
