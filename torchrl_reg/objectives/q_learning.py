"""What every loss over a Q-network shares: the action space, the frozen target network, the regression.

A method adds its target (and, for quantile heads, its distance) in a file of its own.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import QValueActor
from torchrl.modules.tensordict_module.common import ensure_tensordict_compatible
from torchrl.objectives.utils import distance_loss

from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.objectives.bound_network import BoundQNetwork, mixes_rows
from torchrl_reg.objectives.chosen import chosen_action_value
from torchrl_reg.objectives.regularized_loss import (
    LossFunction,
    Reduction,
    RegularizedLoss,
    keep_masked_rows_out,
)
from torchrl_reg.torchrl_compat import find_action_space


class QLearningLoss(RegularizedLoss):
    """Base of the losses ``distance(q(s, a), target)`` with a frozen target network.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor`, or a plain module mapping ``"observation"`` to
            ``[*B, A]`` Q-values together with ``action_space``.
        loss_function: distance between prediction and target: ``"smooth_l1"`` (Huber, delta 1), ``"l2"``, ``"l1"``.
        delay_value: keep a separate target network (True), or bootstrap on the detached online network.
        action_space: ``"categorical"``, ``"one-hot"`` or a spec; read from the network when it has one.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.
        use_prioritized_weights: as in :class:`~torchrl.objectives.DQNLoss`.
        diagnostics: also return the detached scalars listed by the subclass.
    """

    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        loss_function: LossFunction = "smooth_l1",
        delay_value: bool = True,
        action_space: str | TensorSpec | None = None,
        reduction: Reduction | None = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        diagnostics: bool = True,
        **coefficients: float | None,
    ) -> None:
        super().__init__(
            loss_function=loss_function,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            diagnostics=diagnostics,
        )
        self.delay_value = delay_value
        network = ensure_tensordict_compatible(
            module=value_network, wrapper_type=QValueActor, action_space=action_space
        )
        self.convert_to_functional(network, "value_network", create_target_params=delay_value)
        self._mixes_rows = mixes_rows(network)
        self._register_coefficients(**coefficients)
        self.action_space = self._resolve_action_space(action_space, network)
        # Eagerly, not on the first forward: else state dicts are asymmetric and torch.compile pays a recompilation.
        self.make_value_estimator()

    @staticmethod
    def _resolve_action_space(action_space: str | TensorSpec | None, network: nn.Module) -> str:
        if action_space is None:
            action_space = getattr(network, "action_space", None)
        if action_space is None:
            action_space = getattr(network, "spec", None)
        if action_space is None:
            raise ValueError(
                "action_space must be given ('categorical', 'one-hot' or a spec): the value network does not say."
            )
        resolved = find_action_space(action_space)
        if resolved not in ("categorical", "one_hot"):
            raise ValueError(f"action_space must be 'categorical' or 'one-hot', got {resolved!r}.")
        return resolved

    def _bound_module(self, name: str, params: TensorDictBase, private: bool) -> BoundQNetwork:
        return BoundQNetwork(self.value_network, params, self.tensor_keys.action_value, private=private)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``(q(s, a) - target)^2 [*B, 1]``."""
        online, target_network = self._bound(tensordict)
        q = online(tensordict)
        action = tensordict.get(self.tensor_keys.action)
        # Targets and priorities keep float32 where the network computes in half precision.
        prediction = at_least_float32(chosen_action_value(q, action, self.action_space))
        mask = self._loss_mask(tensordict, prediction)
        with torch.no_grad():
            target, diagnostics = self._target(tensordict, q.detach(), action, target_network)
            target = keep_masked_rows_out(target.squeeze(-1).to(prediction.dtype), prediction, mask)
            td_error = prediction - target
            self._write_priority(tensordict, td_error.square())
            self._note_td_error(diagnostics, td_error)
        elementwise = distance_loss(prediction, target, self.loss_function)
        return self._output(tensordict, elementwise, mask, diagnostics)

    def _target(
        self, tensordict: TensorDictBase, q: Tensor, action: Tensor, target_network: BoundQNetwork
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The regression target ``[*B, 1]`` and diagnostic rows, given the detached online ``q`` at s."""
        raise NotImplementedError
