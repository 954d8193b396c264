"""Several losses of one kind as one: networks side by side, one forward pass and one backward pass for all.

Shapes: ``S`` losses, ``B`` rows of each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn

from torchrl_reg.modules.ensembles import stack_as_views, stack_layers
from torchrl_reg.objectives.binding import inner_module


class StackedLoss:
    """``S`` Q-learning losses that are computed together, for seeds of one run or an ensemble.

    Their parameters, target networks included, become views of one tensor ``[S, ...]`` each, so that what is done to a
    loss by itself (an optimizer's step, a target update, ``load_state_dict``, acting) is done to the stack. Each
    loss and its gradients are those it would have by itself, but for the order of summation.

    Args:
        losses: of one class, with networks of one shape (linear, convolutional and elementwise layers), the same
            coefficients and ``reduction="mean"``. One-step and n-step targets; implicit quantiles up to 16.

    Attributes:
        loss: the stack as a loss: ``[S, B]`` in, entries ``[S]`` out (0-dimensional: the same for all).

    Raises:
        ValueError: losses that cannot be stacked, and why.

    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import MunchausenDQNLoss
    >>> losses = [MunchausenDQNLoss(QValueActor(nn.Linear(4, 3), spec=Categorical(3))) for _ in range(5)]
    >>> stack = StackedLoss(losses)
    >>> [stack.parameter(parameter).shape for parameter in losses[2].parameters()]
    [torch.Size([5, 3, 4]), torch.Size([5, 3])]
    """

    def __init__(self, losses: Sequence[Any]) -> None:
        _check(losses)
        first = losses[0]
        self.loss = copy.deepcopy(first)
        self.loss._is_stack, self.loss.data_checks = True, "never"
        found = inner_module(self.loss.value_network, first.tensor_keys.action_value)
        if found is None:
            raise ValueError(f"value_network must be a QValueActor without masks and hooks, got {first.value_network}.")
        stack_layers(found)
        self._stacked: dict[int, nn.Parameter] = {}
        learnt = [key for key, leaf in first.value_network_params.items(True, True) if leaf.requires_grad]
        for name in ("value_network_params", "target_value_network_params"):
            if name in first._modules:
                self.loss._modules[name] = self._joined([loss._modules[name] for loss in losses], learnt)
        for loss in (self.loss, *losses):
            loss._bind()  # target networks hold the memory that their parameters had
        self._coefficients = [c.value for loss in losses for c in loss._coefficients().values()]
        self._versions = self._seen()

    def parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        """That parameter of all losses ``[S, ...]``, of which ``parameter`` is one's.

        Raises:
            ValueError: it is not among those that were stacked.
        """
        if id(parameter) not in self._stacked:
            raise ValueError(f"parameter must be one of the losses' networks, got one of shape {[*parameter.shape]}.")
        return self._stacked[id(parameter)]

    def is_current(self) -> bool:
        """True while no coefficient has been assigned since; else stack the losses again."""
        return self._versions == self._seen()

    def _seen(self) -> list[int]:
        return [coefficient._version for coefficient in self._coefficients]

    def _joined(self, groups: Sequence[TensorDictBase], learnt: Sequence[NestedKey]) -> TensorDictParams:
        """The parameters of all losses under each name, which become views of them; buffers stay those of the first."""
        joined = TensorDict()
        for key, leaf in groups[0].items(True, True):
            joined.set(key, leaf)
            if key not in learnt:
                continue
            singles = [group.get(key) for group in groups]
            together = stack_as_views(singles)
            joined.set(key, nn.Parameter(together) if leaf.requires_grad else together)
            self._stacked |= {id(single): joined.get(key) for single in singles}
        return TensorDictParams(joined, no_convert=True)


def _check(losses: Sequence[Any]) -> None:
    if not losses:
        raise ValueError("losses must be one or more, got none.")
    first = losses[0]
    for loss in losses:
        if type(loss) is not type(first) or not hasattr(loss, "stacked_with"):
            raise ValueError(f"losses must be Q-learning losses of one class, got a {type(loss).__name__}.")
    plain = vars(type(first.regularizer)).get("stackable", False) and not (first._learnt or first._reports_error)
    if not plain or not first.head.stackable or first.value_estimator.needs_sequences or first.reduction != "mean":
        raise ValueError(
            "losses must have a regularizer without a state, coefficients that are not learnt, a head that can be "
            f"stacked, one-step targets and reduction='mean', got {type(first).__name__}."
        )
    settings = _settings(first)
    for loss in losses[1:]:
        for name, setting in _settings(loss).items():
            if setting != settings[name]:
                raise ValueError(f"losses must agree in {name}, got {settings[name]} and {setting}.")
    expected = _numbers(first)
    for loss in losses[1:]:
        for name, number in _numbers(loss).items():
            if not torch.equal(number, expected[name]):
                raise ValueError(f"losses must agree in {name}, got {expected[name]} and {number}.")


def _numbers(loss: Any) -> dict[str, Tensor]:
    """Tensors of a loss besides learnt parameters: coefficients, the discount, a grid of atoms."""
    numbers = {name: buffer for name, buffer in loss.named_buffers() if "value_network_params" not in name}
    networks = loss.value_network_params.items(True, True)
    return numbers | {str(name): leaf for name, leaf in networks if not leaf.requires_grad}


def _settings(loss: Any) -> dict[str, Any]:
    """Settings of a loss that are no tensors."""
    names = ("loss_function", "reduction", "weight_reduction", "double_dqn", "delay_value", "action_space")
    settings = {name: getattr(loss, name) for name in names} | {"tensor_keys": vars(loss.tensor_keys)}
    dtypes = [leaf.dtype for leaf in loss.value_network_params.values(True, True)]
    settings |= {"value_network": str(loss.value_network), "dtype": dtypes}
    for name in ("regularizer", "shaping", "head", "value_estimator"):
        part = getattr(loss, name)
        numbers = {k: v for k, v in vars(part).items() if isinstance(v, (int, float, str))} if part is not None else {}
        settings[name] = (type(part).__name__, numbers)
    return settings
