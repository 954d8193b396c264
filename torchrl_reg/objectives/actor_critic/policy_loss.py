"""Base of the losses over a policy, which may have critics Q(s, a) or a value network V(s) beside it."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_reg.objectives.actor_critic.stochastic_actor import check_value_network, state_value, stored_action_key
from torchrl_reg.objectives.regularized_loss import RegularizedLoss


class PolicyLoss(RegularizedLoss):
    """Base of the losses over a policy: its networks, with or without target networks."""

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def _take_networks(
        self, actor: Any, value: Any = None, *, critics: Any = None, delay_actor: bool = False, delay_value: bool = True
    ) -> None:
        """Make the networks that are given functional, with target networks of the critics and where ``delay_*`` says.

        Raises:
            ValueError: a value network that is no TensorDict module.
        """
        if value is None:
            self.value_network = None  # type: ignore[assignment]
        else:
            check_value_network(value)
        networks = {"actor_network": (actor, delay_actor), "qvalue_network": (critics, True)}
        networks |= {"value_network": (value, delay_value)}
        given = {name: pair for name, pair in networks.items() if pair[0] is not None}
        self._network_names = tuple(given)  # type: ignore[misc]
        for name, (network, delayed) in given.items():
            self.convert_to_functional(network, name, create_target_params=delayed)
        self.set_keys(action=stored_action_key(actor), **({} if value is None else {"value": value.out_keys[0]}))

    def _state_value(self, network: Any, states: TensorDictBase) -> Tensor:
        """``V [*B]`` of a bound value network."""
        return state_value(network.network, states, self.tensor_keys.value)
