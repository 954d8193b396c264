"""What the losses with an actor and critics Q(s, a) share: networks, sampled actions, entries and priorities.

Shapes: ``*B`` batch, ``C`` critics, ``K`` actions per state, ``D`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution
from torchrl.objectives.utils import ValueEstimators, distance_loss

from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.modules import Multicategorical
from torchrl_reg.modules.critic_ensemble import CriticEnsemble
from torchrl_reg.objectives.bound_network import BoundCritics, BoundModule, pointers
from torchrl_reg.objectives.regularized_loss import (
    LossFunction,
    RegularizedLoss,
    _means,
    blank_rows,
    keep_masked_rows_out,
)
from torchrl_reg.objectives.stochastic_actor import log_prob, stored_action_key
from torchrl_reg.objectives.value.one_step import one_step_return, terminated_flag
from torchrl_reg.regularizers.coefficient import Coefficient, coefficient


class _Frozen(NamedTuple):
    """Critics that get no gradient, the parameters whose memory they share, and where that lies."""

    critics: BoundCritics
    leaves: list[Tensor]
    memory: list[int]


class ActorCriticLoss(RegularizedLoss):
    """Base of the losses with an actor and one or several critics; a method adds its target and its actor's loss.

    The critics have target networks, the actor has none. The gradient of the actor's loss does not reach the critics.

    Args:
        actor_network: the actor.
        qvalue_network: a critic, or a list of them; each writes Q(s, a) ``[*B, 1]`` from entries with the action among
            them. With several, the smallest value counts.
        temperature: the coefficient behind ``loss.tau``.
        loss_function: distance between Q(s, a) and its target; summed over the critics.
        reduction, use_prioritized_weights, diagnostics: see :class:`RegularizedLoss`.

    Raises:
        ValueError: critics that are no TensorDict modules, or that do not read the action.
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: CriticEnsemble
    qvalue_network_params: TensorDictParams
    _frozen: Any
    target_qvalue_network_params: TensorDictParams
    _network_names: ClassVar[tuple[str, ...]] = ("actor_network", "qvalue_network")
    default_value_estimator: Any = ValueEstimators.TD0
    tau: Any = coefficient("temperature", "The current temperature, in reward units; assign to schedule it.")

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
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
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(ensemble, "qvalue_network", create_target_params=True)

    def _coefficients(self) -> dict[str, Coefficient]:
        return {"tau": self.temperature}

    def _set_in_keys(self) -> None:
        action = self.tensor_keys.action
        networks = [getattr(self, name) for name in self._network_names]
        states = [key for network in networks for key in network.in_keys if key != action]
        ends = [self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated]
        self._in_keys = list(dict.fromkeys([action, *states, *[("next", key) for key in [*ends, *states]]]))

    # -- networks -----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        super()._bind()
        self.__dict__["_frozen"] = None
        if self._bound_networks is not None:
            # A copy of the critics that shares their memory, but whose parameters need no gradient.
            params = self.qvalue_network_params
            critics, leaves = BoundCritics(self.qvalue_network, params.data, private=True), [*params.values(True, True)]
            self.__dict__["_frozen"] = _Frozen(critics, leaves, pointers(leaves))

    def _bound_module(self, name: str, params: TensorDictBase, private: bool) -> BoundModule:
        kind = BoundCritics if name == "qvalue_network" else BoundModule
        return kind(getattr(self, name), params, private=private)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_frozen": None}

    def _frozen_critics(self, tensordict: TensorDictBase) -> Any:
        """The online critics, whose parameters get no gradient."""
        online, _ = self._bound(tensordict, "qvalue_network")
        assert self._bound_networks is not None
        if online is self._bound_networks["qvalue_network"].online:
            # Parameters that were given other memory (`p.data = ...`) are the same parameters for all but the copy.
            if not torch.compiler.is_compiling() and pointers(self._frozen.leaves) != self._frozen.memory:
                self._bind()
            return self._frozen.critics
        return self._frozen.critics.holding(self.qvalue_network_params.apply(lambda tensor: tensor.detach()))

    def _q(self, bound: Any, states: TensorDictBase, action: Tensor) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]``, or ``[C, *B, K]`` of actions ``[*B, K, D]``, in the critics' dtype."""
        action = action.to(self._frozen.leaves[0].dtype)
        if action.ndim > states.ndim + 1:
            keys = [key for key in bound.network.in_keys if key != self.tensor_keys.action]
            states = states.select(*keys).unsqueeze(-1).expand(action.shape[: states.ndim + 1])
        return at_least_float32(bound.values(states, self.tensor_keys.action, action))

    def _states(self, tensordict: TensorDictBase, mask: Tensor | None) -> TensorDictBase:
        """What the networks read at s, and the stored action; zero in the rows outside ``mask``."""
        return tensordict if mask is None else blank_rows(tensordict, mask, self._state_keys(True))

    def _next_states(self, tensordict: TensorDictBase, mask: Tensor | None) -> TensorDictBase:
        """What the networks read at s', zero where it does not count: the ends of episodes may hold NaN."""
        used = ~terminated_flag(tensordict, self.tensor_keys).squeeze(-1)
        return blank_rows(tensordict.get("next"), used if mask is None else used & mask, self._state_keys(False))

    def _state_keys(self, action: bool) -> list[Any]:
        keys = [key for name in self._network_names for key in getattr(self, name).in_keys]
        return [key for key in dict.fromkeys(keys) if action or key != self.tensor_keys.action]

    # -- what a forward pass is made of -------------------------------------------------------------------------

    def _one_step_target(self, tensordict: TensorDictBase, next_value: Tensor) -> Tensor:
        """``r + gamma V(s') [*B]`` from ``next_value [*B]``."""
        gamma = self.value_estimator.gamma
        return one_step_return(tensordict, self.tensor_keys, gamma, next_value.unsqueeze(-1)).squeeze(-1)

    def _critic_loss(
        self, tensordict: TensorDictBase, prediction: Tensor, target: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The critics' loss ``[*B]``, summed over them, and their TD errors ``[C, *B]``; writes the priority."""
        target = keep_masked_rows_out(target.to(prediction.dtype).expand_as(prediction), prediction, mask)
        td_error = (target - prediction).detach()
        self._write_priority(tensordict, self._priority(td_error))
        return distance_loss(prediction, target, self.loss_function).sum(0), td_error

    def _priority(self, td_error: Tensor) -> Tensor:
        """Of each transition ``[*B]``, from the critics' TD errors ``[C, *B]``."""
        return td_error.square().amax(0)

    def _entries(
        self,
        tensordict: TensorDictBase,
        weighted: dict[str, Tensor],
        plain: dict[str, Tensor],
        mask: Tensor | None,
        rows: dict[str, Tensor],
        **scalars: Tensor,
    ) -> TensorDict:
        """The reduced losses (priority weights apply to the ``weighted``), further scalars, and means of the rows."""
        masked = None if mask is None else tensordict
        weights = self._weights(tensordict, mask)
        losses = {n: self._reduce_loss(x, tensordict=masked, weights=weights) for n, x in weighted.items()}
        losses |= {n: self._reduce_loss(x, tensordict=masked, weights=None) for n, x in plain.items()}
        if self.diagnostics:
            dtype = losses["loss_qvalue"].dtype
            scalars |= _means({name: x.detach() for name, x in rows.items()}, mask, dtype)
            scalars["tau"] = self.tau.to(dtype, copy=True)
        out = TensorDict({**losses, **scalars})
        self._clear_weakrefs(
            tensordict, out, *[f"{prefix}{n}_params" for n in self._network_names for prefix in ("", "target_")]
        )
        return out


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
