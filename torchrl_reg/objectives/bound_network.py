"""Calling the networks of a loss on plain tensors.

``params.to_module(network)`` costs about 100 us per call and a TensorDictModule another 160 us, more than a small
network's forward pass. A :class:`BoundModule` is therefore permanently bound to the loss's own parameter tensors, and a
:class:`BoundQNetwork` calls the inner module directly where that is the same computation (no action mask, no hooks).
Where the loss's parameters were swapped, :class:`~torchrl_reg.objectives.network_loss.NetworkLoss` asks for the same
network :meth:`~BoundModule.holding` those instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import BatchRenorm1d, QValueActor, QValueModule
from torchrl.objectives.utils import hold_out_net

from torchrl_reg.modules.critic_ensemble import is_plain
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.torchrl_compat import BatchNorm, entry

#: Layers through which a row's output depends on the other rows of its batch.
ROW_MIXERS = (BatchNorm, BatchRenorm1d)


def action_values(
    network: TensorDictModuleBase,
    tensordict: TensorDictBase,
    params: TensorDictBase | None,
    action_value_key: NestedKey,
) -> Tensor:
    """Q-values ``[*B, A]`` of a TensorDict Q-network at ``tensordict``, which is left as it was."""
    inputs = tensordict.select(*network.in_keys, strict=False)
    context = hold_out_net(network) if params is None else _entered(params, network)
    with context:
        return network(inputs).get(action_value_key)


def _entered(params: TensorDictBase, network: nn.Module) -> Any:
    return params.to_module(network, preserve_module_state=False)


def inner_module(network: nn.Module, action_value_key: NestedKey) -> tuple[nn.Module, list[NestedKey]] | None:
    """The plain module (and its in-keys) behind a QValueActor, or None where calling it alone is not the same."""
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
    return (first.module, list(first.in_keys)) if plain else None


class BoundModule:
    """A network that is permanently bound to parameters of a loss.

    Args:
        template: the TensorDict module the loss was built from; not lazy (any more).
        params: the loss's parameters (``<name>_params`` or its target), whose tensors the network will hold.
        private: hold them in a copy of ``template`` (target parameters) rather than in ``template`` itself.
    """

    def __init__(self, template: TensorDictModuleBase, params: TensorDictBase, *, private: bool = False) -> None:
        self._template = template
        self._network = _copied(template) if private else template
        self._stand_in: Self | None = None
        self.mixes_rows = mixes_rows(template)
        # A deep-copied loss has a template of its own, but its tensors are not the copied parameters.
        if private or not _shares_tensors(template, params):
            params.to_module(self._network)
        if private:
            self._network.requires_grad_(False)

    @property
    def network(self) -> Any:
        """The network with its parameters, in the train or eval mode of the template."""
        self._follow_mode()
        return self._network

    def holding(self, params: TensorDictBase) -> Self:
        """This network with the tensors of ``params`` instead, whatever they are (batched by vmap, say); for one use.

        It has a module of its own: neither the template nor this one is touched.
        """
        if self._stand_in is None:
            self._stand_in = copy.copy(self)
            self._stand_in._use(_copied(self._template))
        params.to_module(self._stand_in._network, preserve_module_state=False)
        return self._stand_in

    def _use(self, network: TensorDictModuleBase) -> None:
        self._network = network

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, calls leave the running statistics of batch normalization unchanged: for passes that only report."""
        layers = [layer for layer in self._network.modules() if isinstance(layer, ROW_MIXERS)]
        before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
        yield
        for buffer, value in before:
            buffer.copy_(value)

    def _follow_mode(self) -> None:
        # A private copy does not see `actor.eval()`; TorchRL would have run the template.
        if self._network.training != self._template.training:
            self._network.train(self._template.training)


class BoundCritics(BoundModule):
    """Bound critics, a :class:`~torchrl_reg.modules.CriticEnsemble`, called on plain tensors where that is exact."""

    def __init__(self, template: TensorDictModuleBase, params: TensorDictBase, *, private: bool = False) -> None:
        super().__init__(template, params, private=private)
        self._use(self._network)

    def _use(self, network: Any) -> None:
        super()._use(network)
        # Of a critic that does more, what its `module` holds is not called.
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


class BoundQNetwork(BoundModule):
    """A bound Q-network, callable on plain tensors where that is exact.

    Args:
        template, params, private: see :class:`BoundModule`.
        action_value_key: where the network writes its ``[*B, A]`` Q-values.
        rows_dim: the dimension along which batches are joined; 1 for a stack of networks.
    """

    def __init__(
        self,
        template: TensorDictModuleBase,
        params: TensorDictBase,
        action_value_key: NestedKey,
        *,
        private: bool = False,
        rows_dim: int = 0,
    ) -> None:
        super().__init__(template, params, private=private)
        self._action_value_key, self._rows_dim = action_value_key, rows_dim
        self._use(self._network)

    def _use(self, network: TensorDictModuleBase) -> None:
        super()._use(network)
        inner = inner_module(network, self._action_value_key)
        self._module: Callable[..., Tensor] | None = layer_by_layer(inner[0]) if inner else None
        # Looked up once: indexing a sequence of modules costs as much as a small kernel.
        first, last = (
            list(network.module)[:: len(network.module) - 1] if isinstance(network, QValueActor) else (None,) * 2
        )
        self._first, self._mask_key = first, getattr(last, "action_mask_key", None)
        self._in_keys: list[NestedKey] = list(first.in_keys) if first is not None else []

    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` at the root of ``tensordict``."""
        self._follow_mode()
        if self._module is not None:
            return self._module(*self.inputs(tensordict))
        inputs = tensordict.select(*self._network.in_keys, strict=False)
        return self._network(inputs).get(self._action_value_key)

    def both(self, tensordict: TensorDictBase, *, root_counts: bool = True) -> tuple[Tensor, Tensor]:
        """Q-values at the root and at ``"next"``, in one pass where that is exact (no batch statistics, say).

        ``root_counts=False`` says that those at the root are for diagnostics only: batch statistics stay as if that
        pass had not been made.
        """
        if self._module is not None:
            self._follow_mode()
            return self.at_both(self._module, tensordict, root_counts=root_counts)
        following = entry(tensordict, "next")
        if self.mixes_rows and not root_counts:
            with self.undisturbed():
                root = self(tensordict)
            return root, self(following)
        return self(tensordict), self(following)

    # -- for heads that call other methods of the network ---------------------------------------------------------

    @property
    def inner(self) -> Any:
        """The module behind the Q-values: what gives quantiles or atoms."""
        self._follow_mode()
        return self._first.module  # type: ignore[union-attr]

    def inputs(self, tensordict: TensorDictBase) -> list[Tensor]:
        """The observations it reads at the root of ``tensordict``."""
        return [entry(tensordict, key) for key in self._in_keys]

    def allowed(self, q: Tensor, tensordict: TensorDictBase) -> Tensor:
        """``q [*B, A]`` with forbidden actions at the smallest finite number, as QValueModule masks them."""
        if self._mask_key is None:
            return q
        return torch.where(tensordict.get(self._mask_key), q, torch.finfo(q.dtype).min)

    def at_both(
        self, call: Callable[..., Tensor], tensordict: TensorDictBase, *, root_counts: bool
    ) -> tuple[Tensor, Tensor]:
        """``call`` on the observations at s and at s', in one pass where that is exact.

        Where rows mix (batch normalization) and s is for diagnostics only, its pass leaves the statistics as they were.
        """
        here, following = self.inputs(tensordict), self.inputs(entry(tensordict, "next"))
        if tensordict.batch_dims and not self.mixes_rows:
            dim = self._rows_dim
            first, second = call(*[torch.cat(pair, dim) for pair in zip(here, following, strict=True)]).chunk(2, dim)
            return first, second
        with nullcontext() if root_counts else self.undisturbed():
            root = call(*here)
        return root, call(*following)


def mixes_rows(network: nn.Module) -> bool:
    """Whether a row's output depends on the other rows of its batch, so that batches must not be joined."""
    return any(isinstance(module, ROW_MIXERS) for module in network.modules())


def pointers(tensors: list[Tensor]) -> list[int]:
    """Where the tensors lie: assigning to a parameter's ``data`` moves it, and it stays the same parameter."""
    return [tensor.data_ptr() for tensor in tensors]


def _copied(network: TensorDictModuleBase) -> TensorDictModuleBase:
    """A deep copy, also of modules that keep a computed tensor among their attributes (old-style ``weight_norm``)."""
    attributes = [value for module in network.modules() for value in vars(module).values()]
    computed = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in computed})


def _shares_tensors(network: nn.Module, params: TensorDictBase) -> bool:
    # Buffers too: a cast of the loss gives it new ones, and leaves the network its own (the bounds of an actor, say).
    held = params.flatten_keys(".")
    return all(held.get(name) is t for name, t in (*network.named_parameters(), *network.named_buffers()))
