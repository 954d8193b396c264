"""Bases and helpers of the losses with an actor."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.modules.tensordict_module import SafeProbabilisticModule
from torchrl.objectives.utils import distance_loss

from torchrl_reg.compat import fast_get
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import Multicategorical
from torchrl_reg.modules.ensembles import CriticEnsemble, is_plain
from torchrl_reg.modules.flow import FlowDistribution
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.modules.multicategorical import AutoregressiveMulticategorical
from torchrl_reg.objectives.base import LossFunction, RegularizedLoss
from torchrl_reg.objectives.binding import BoundNetwork
from torchrl_reg.objectives.value import regularized_target
from torchrl_reg.regularizers.coefficients import Coefficient


class PolicyLoss(RegularizedLoss):
    """Base of the losses over a policy: its networks, with or without target networks."""

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def _take_networks(
        self,
        actor: Any,
        value: TensorDictModuleBase | None = None,
        *,
        critics: CriticEnsemble | None = None,
        delay_actor: bool = False,
        delay_value: bool = True,
    ) -> None:
        """Make the given networks functional, with target networks of the critics and where ``delay_*`` is True.

        Raises:
            ValueError: a value network that is no TensorDict module.
        """
        if value is None:
            self.value_network = None
        else:
            check_value_network(value)
        networks = {"actor_network": (actor, delay_actor), "qvalue_network": (critics, True)}
        networks |= {"value_network": (value, delay_value)}
        given = {name: pair for name, pair in networks.items() if pair[0] is not None}
        self._network_names = tuple(given)  # type: ignore[misc]
        for name, (network, delayed) in given.items():
            self.convert_to_functional(network, name, create_target_params=delayed)
        self.set_keys(action=stored_action_key(actor), **({} if value is None else {"value": value.out_keys[0]}))

    def _diagnostic_keys(self) -> list[str]:
        entropy = ["entropy"] if has_closed_entropy(self.actor_network) else []
        return ["td_error", "value", "log_pi", *entropy, "tau"]

    def _state_value(self, network: BoundNetwork, states: TensorDictBase) -> Tensor:
        """``V [*B]`` of a bound value network."""
        return state_value(network.network, states, self.tensor_keys.value)


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
            outputs = layer_by_layer(network.module)(*[fast_get(tensordict, key) for key in network.in_keys])
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


def has_closed_entropy(actor: Any) -> bool:
    """True if the actor's distributions have an entropy in closed form, or if it declares no ``distribution_class``."""
    kinds = [module.distribution_class for module in actor.modules() if hasattr(module, "distribution_class")]
    kind = kinds[-1] if kinds else None
    estimated = getattr(kind, "entropy_is_estimated", False)
    return not estimated and getattr(kind, "entropy", None) is not Distribution.entropy


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


class BoundCritics(BoundNetwork):
    """Bound critics, a :class:`~torchrl_reg.modules.CriticEnsemble`, called on plain tensors where that is exact."""

    def _use(self, network: Any) -> None:
        super()._use(network)
        # A critic with hooks or extra behaviour is called as a module.
        self._runs = [layer_by_layer(critic.module) if is_plain(critic) else None for critic in network.critics]

    def values(self, states: TensorDictBase, action_key: NestedKey, action: Tensor) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]`` at ``action``; ``states`` is left as it was."""
        values = []
        for critic, run in zip(self.network.critics, self._runs, strict=True):
            if run is None or not is_plain(critic):
                keys = [key for key in critic.in_keys if key != action_key]
                q = critic(states.select(*keys).set(action_key, action)).get(critic.out_keys[-1])
            else:
                q = run(*[action if key == action_key else fast_get(states, key) for key in critic.in_keys])
            values.append(q.squeeze(-1))
        return torch.stack(values)


class ActorCriticLoss(PolicyLoss):
    """Base of the losses with an actor and one or several critics; a method adds its target and its actor's loss.

    The critics have target networks, the actor has none. The gradient of the actor's loss does not reach the critics.

    Args:
        actor_network: the actor.
        qvalue_network: a critic, or a list of them; each writes Q(s, a) ``[*B, 1]`` from entries with the action among
            them. With several, the smallest value counts.
        value_network: V(s), for the methods that have one.
        tau: the coefficient behind ``loss.tau``; it moves to the actor's device.
        loss_function: distance between Q(s, a) and its target; summed over the critics.
        reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`RegularizedLoss`.

    Raises:
        ValueError: critics that are no TensorDict modules, or that do not read the action.
    """

    coefficient_names = ("tau",)
    _detached_names = ("qvalue_network",)
    qvalue_network: CriticEnsemble
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        value_network: TensorDictModuleBase | None = None,
        *,
        tau: Coefficient,
        loss_function: LossFunction = "l2",
        **kwargs: Any,
    ) -> None:
        super().__init__(loss_function=loss_function, **kwargs)
        critics: list[Any] = list(qvalue_network) if isinstance(qvalue_network, (list, tuple)) else [qvalue_network]
        ensemble = CriticEnsemble(critics)
        action_key = stored_action_key(actor_network)
        for critic in critics:
            if action_key not in critic.in_keys:
                raise ValueError(
                    f"qvalue_network must read the action {action_key!r}, got a critic that reads "
                    f"{', '.join(map(repr, critic.in_keys))}."
                )
        self.tau_coefficient = tau.to(next((p.device for p in actor_network.parameters()), None))
        self._take_networks(actor_network, value_network, critics=ensemble)

    def _loss_keys(self) -> list[str]:
        return ["loss_actor", "loss_qvalue"]

    def _diagnostic_keys(self) -> list[str]:
        return ["td_error", "value", "tau"]

    # -- networks -----------------------------------------------------------------------------------------------

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> BoundNetwork:
        kind = BoundCritics if name == "qvalue_network" else BoundNetwork
        return kind(getattr(self, name), params, private=private)

    def _detached_critics(self, tensordict: TensorDictBase) -> BoundCritics:
        """The online critics, whose parameters get no gradient."""
        online, _ = self._bound(tensordict, "qvalue_network")
        return self._detached("qvalue_network", online)

    def _q(self, bound: BoundCritics, states: TensorDictBase, action: Tensor) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]``, or ``[C, *B, K]`` of actions ``[*B, K, D]``, in the critics' dtype."""
        action = action.to(self._copies["qvalue_network"][1][0].dtype)
        if action.ndim > states.ndim + 1:
            keys = [key for key in bound.network.in_keys if key != self.tensor_keys.action]
            states = states.select(*keys).unsqueeze(-1).expand(action.shape[: states.ndim + 1])
        return at_least_float32(bound.values(states, self.tensor_keys.action, action))

    # -- parts of a forward pass --------------------------------------------------------------------------------

    def _one_step_target(self, data: TensorDictBase, next_value: Tensor) -> Tensor:
        """``r + gamma V(s') [*B]`` from ``next_value [*B]``."""
        gamma = self.value_estimator.gamma
        return regularized_target(data, self.tensor_keys, next_value.unsqueeze(-1), gamma=gamma).squeeze(-1)

    def _predicted(self, data: TensorDictBase) -> tuple[Any, Tensor]:
        """The online critics, and their values ``[C, *B]`` of the stored actions."""
        critics, _ = self._bound(data, "qvalue_network")
        return critics, self._q(critics, data, stored_action(data, self.tensor_keys.action))

    def _critic_loss(
        self, tensordict: TensorDictBase, prediction: Tensor, target: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The critics' loss ``[*B]``, summed over them, and their TD errors ``[C, *B]``; writes the priority."""
        target = target.to(prediction.dtype).expand_as(prediction)
        td_error = (target - prediction).detach()
        self._write_priority(tensordict, self._priority(td_error), mask)
        return distance_loss(prediction, target, self.loss_function).sum(0), td_error

    def _priority(self, td_error: Tensor) -> Tensor:
        """Of each transition ``[*B]``, from the critics' TD errors ``[C, *B]``."""
        return td_error.square().amax(0)


def reparametrized(
    dist: Distribution, batch_size: torch.Size, *, straight_through: bool = False
) -> tuple[Tensor, Tensor]:
    """A sampled action, through which the gradient flows, and its log-probability ``[*B]``.

    Raises:
        ValueError: the distribution has no such samples, or straight-through ones that were not asked for.
    """
    if isinstance(dist, Multicategorical) and not straight_through:
        raise ValueError(
            "actor_network must give reparametrized samples, as gaussian_actor and FlowActor do, got a "
            "Multicategorical, whose straight-through gradient is biased (SoftActorCriticLoss takes it with "
            "straight_through=True)."
        )
    if hasattr(dist, "rsample_and_log_prob"):
        return dist.rsample_and_log_prob()
    if not dist.has_rsample:
        raise ValueError(
            "actor_network must give samples that carry a gradient (rsample), as gaussian_actor and FlowActor do, got "
            f"a {type(dist).__name__}."
        )
    action = dist.rsample()
    return action, at_least_float32(log_prob(dist, action, batch_size))
