"""What the losses with an actor and critics Q(s, a) share: networks, sampled actions, entries and priorities.

Shapes: ``*B`` batch, ``C`` critics, ``K`` actions per state, ``D`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution
from torchrl.objectives.utils import distance_loss

from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import Multicategorical
from torchrl_reg.modules.critic_ensemble import CriticEnsemble, is_plain
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.objectives.actor_critic.policy_loss import PolicyLoss
from torchrl_reg.objectives.actor_critic.stochastic_actor import log_prob, stored_action, stored_action_key
from torchrl_reg.objectives.binding import BoundNetwork, pointers
from torchrl_reg.objectives.regularized_loss import LossFunction
from torchrl_reg.objectives.value.estimator import regularized_target
from torchrl_reg.regularizers.coefficient import Coefficient, coefficient
from torchrl_reg.torchrl_compat import entry


class BoundCritics(BoundNetwork):
    """Bound critics, a :class:`~torchrl_reg.modules.CriticEnsemble`, called on plain tensors where that is exact."""

    def _use(self, network: Any) -> None:
        super()._use(network)
        # A critic with hooks or extra behaviour is called whole.
        self._runs = [layer_by_layer(critic.module) if is_plain(critic) else None for critic in network.critics]

    def values(self, states: TensorDictBase, action_key: NestedKey, action: Tensor) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]`` at ``action``; ``states`` is left as it was."""
        values = []
        for critic, run in zip(self.network.critics, self._runs, strict=True):
            if run is None or not is_plain(critic):
                keys = [key for key in critic.in_keys if key != action_key]
                q = critic(states.select(*keys).set(action_key, action)).get(critic.out_keys[-1])
            else:
                q = run(*[action if key == action_key else entry(states, key) for key in critic.in_keys])
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
        temperature: the coefficient behind ``loss.tau``.
        loss_function: distance between Q(s, a) and its target; summed over the critics.
        reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`RegularizedLoss`.

    Raises:
        ValueError: critics that are no TensorDict modules, or that do not read the action.
    """

    qvalue_network: CriticEnsemble
    qvalue_network_params: TensorDictParams
    _detached: Any
    target_qvalue_network_params: TensorDictParams
    tau: Any = coefficient("temperature", "The current temperature, in reward units; assign to schedule it.")

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        value_network: TensorDictModuleBase | None = None,
        *,
        temperature: Coefficient,
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
        self.temperature = temperature.to(next((p.device for p in actor_network.parameters()), None))
        self._take_networks(actor_network, value_network, critics=ensemble)

    def _coefficients(self) -> dict[str, Coefficient]:
        return {"tau": self.temperature}

    # -- networks -----------------------------------------------------------------------------------------------

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> BoundNetwork:
        kind = BoundCritics if name == "qvalue_network" else BoundNetwork
        return kind(getattr(self, name), params, private=private)

    def _bind(self) -> None:
        super()._bind()
        self.__dict__["_detached"] = None
        if self._bound_networks is not None:
            # A copy of the critics that shares their memory, but whose parameters need no gradient.
            params = self.qvalue_network_params
            leaves = [*params.values(True, True)]
            copied = BoundCritics(self.qvalue_network, params.data, private=True)
            self.__dict__["_detached"] = (copied, leaves, pointers(leaves))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_detached": None}

    def _detached_critics(self, tensordict: TensorDictBase) -> BoundCritics:
        """The online critics, whose parameters get no gradient."""
        online, _ = self._bound(tensordict, "qvalue_network")
        if online is not self._bound_networks["qvalue_network"][0]:  # type: ignore[index]
            return self._detached[0].at(self.qvalue_network_params.apply(lambda tensor: tensor.detach()))
        # Parameters that were given other memory (`p.data = ...`) are the same parameters for all but the copy.
        _, leaves, memory = self._detached
        if not torch.compiler.is_compiling() and pointers(leaves) != memory:
            self._bind()
        return self._detached[0]

    def _q(self, bound: BoundCritics, states: TensorDictBase, action: Tensor) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]``, or ``[C, *B, K]`` of actions ``[*B, K, D]``, in the critics' dtype."""
        action = action.to(self._detached[1][0].dtype)
        if action.ndim > states.ndim + 1:
            keys = [key for key in bound.network.in_keys if key != self.tensor_keys.action]
            states = states.select(*keys).unsqueeze(-1).expand(action.shape[: states.ndim + 1])
        return at_least_float32(bound.values(states, self.tensor_keys.action, action))

    # -- what a forward pass is made of -------------------------------------------------------------------------

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
