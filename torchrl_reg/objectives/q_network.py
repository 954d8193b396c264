"""Calling a Q-network on plain tensors, where its actor adds nothing to the module inside.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import QValueActor, QValueModule
from torchrl.objectives.utils import hold_out_net

from torchrl_reg.modules.critic_ensemble import is_plain
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.objectives.binding import BoundNetwork
from torchrl_reg.torchrl_compat import entry


def action_values(
    network: TensorDictModuleBase, tensordict: TensorDictBase, params: TensorDictBase | None, key: NestedKey
) -> Tensor:
    """Q-values ``[*B, A]``, which ``network`` writes under ``key``, at ``tensordict``, which is left as it was."""
    inputs = tensordict.select(*network.in_keys, strict=False)
    with hold_out_net(network) if params is None else params.to_module(network, preserve_module_state=False):
        return network(inputs).get(key)


def inner_module(network: nn.Module, action_value_key: NestedKey) -> nn.Module | None:
    """The plain module behind a QValueActor, or None where calling it alone is not the same."""
    if not isinstance(network, QValueActor) or len(network.module) != 2:
        return None
    first, last = network.module
    plain = (
        type(first) is TensorDictModule
        and is_plain(first)
        and list(first.out_keys) == [action_value_key]
        and isinstance(last, QValueModule)
        and last.action_mask_key is None
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (network, last))
    )
    return first.module if plain else None


class BoundQNetwork(BoundNetwork):
    """A bound Q-network (160 us a call cheaper where :func:`inner_module` finds its plain module).

    Args:
        template, params, private: see :class:`BoundNetwork`.
        action_value_key: where the network writes its ``[*B, A]`` Q-values.
        rows_dim: the dimension along which batches are joined; 1 for a stack of networks.
    """

    def __init__(
        self, template: Any, params: Any, *, private: bool, action_value_key: NestedKey, rows_dim: int = 0
    ) -> None:
        self._action_value_key, self._rows_dim = action_value_key, rows_dim
        super().__init__(template, params, private=private)

    def _use(self, network: Any) -> None:
        super()._use(network)
        inner = inner_module(network, self._action_value_key)
        self._plain: Callable[..., Tensor] | None = None if inner is None else layer_by_layer(inner)
        # Looked up once: indexing a sequence of modules costs as much as a small kernel.
        parts: list[Any] = list(network.module) if isinstance(network, QValueActor) else [None, None]
        self._first, self._mask_key = parts[0], getattr(parts[-1], "action_mask_key", None)

    @property
    def inner(self) -> Any:
        """The module behind the Q-values: what gives quantiles or atoms."""
        assert self.network is not None and self._first is not None
        return self._first.module

    def inputs(self, tensordict: TensorDictBase) -> list[Tensor]:
        """The observations it reads at ``tensordict``."""
        return [entry(tensordict, key) for key in self._first.in_keys]  # type: ignore[union-attr]

    def allowed(self, q: Tensor, tensordict: TensorDictBase) -> Tensor:
        """``q [*B, A]`` with forbidden actions at the smallest finite number, as QValueModule masks them."""
        if self._mask_key is None:
            return q
        return torch.where(tensordict.get(self._mask_key), q, torch.finfo(q.dtype).min)

    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` at ``tensordict``."""
        network = self.network
        if self._plain is not None:
            return self._plain(*self.inputs(tensordict))
        return network(tensordict.select(*network.in_keys, strict=False)).get(self._action_value_key)

    def both(
        self, tensordict: TensorDictBase, *, here_counts: bool, call: Callable[..., Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """``call(*observations)``, by default Q-values, at s and at s'; in one pass where that is exact.

        ``here_counts=False`` says that those at s only report: batch statistics stay as if that pass had not been made.
        """
        following, call = entry(tensordict, "next"), call or (self._plain and self.network and self._plain)
        if call is not None and tensordict.batch_dims and not self.mixes_rows:
            pairs = zip(self.inputs(tensordict), self.inputs(following), strict=True)
            first, second = call(*[torch.cat(pair, self._rows_dim) for pair in pairs]).chunk(2, self._rows_dim)
            return first, second
        at = self.__call__ if call is None else lambda states: call(*self.inputs(states))
        with nullcontext() if here_counts else self.undisturbed():
            here = at(tensordict)
        return here, at(following)
