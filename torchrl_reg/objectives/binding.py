"""The networks of a loss, bound once to its parameters, and bound again where others take their place.

``params.to_module(network)`` costs about 100 us a call, more than a small network's forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import BatchRenorm1d
from torchrl.objectives import LossModule

from torchrl_reg.regularizers.checks import exact_where_possible
from torchrl_reg.torchrl_compat import BatchNorm, held_tensordict, unwrap_inherited_forward


class BoundNetwork:
    """A network that holds the tensors of ``params``: ``template`` itself or, if ``private``, a copy without gradients.

    :attr:`mixes_rows` says whether a row's output depends on the other rows of its batch (batch normalization).
    """

    def __init__(self, template: TensorDictModuleBase, params: TensorDictBase, *, private: bool = False) -> None:
        self.template, self._held = template, held_tensordict(params)
        self._stand_in: Self | None = None
        self.mixes_rows = any(isinstance(module, (BatchNorm, BatchRenorm1d)) for module in template.modules())
        network = _copied(template) if private else template
        # A deep-copied loss has a template of its own, whose tensors are not the copied parameters.
        if private or not _shares_tensors(template, params):
            params.to_module(network)
        if private:
            network.requires_grad_(False)
        self._use(network)

    def _use(self, network: Any) -> None:
        self._network = network

    @property
    def network(self) -> Any:
        """The network, in the train or eval mode of its template: a copy does not see ``actor.eval()``."""
        if self._network.training != self.template.training:
            self._network.train(self.template.training)
        return self._network

    def at(self, params: TensorDictBase) -> Self:
        """This network if ``params`` are those it holds, else one for this pass only, bound to them (by vmap, say)."""
        held = held_tensordict(params)
        if held is self._held or _same_tensors(held, self._held):
            self._held = held  # after a swap, what is restored is another tensordict with the same tensors
            return self
        if self._stand_in is None:
            self._stand_in = copy.copy(self)
            self._stand_in._use(_copied(self.template))
        params.to_module(self._stand_in._network, preserve_module_state=False)
        return self._stand_in

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, calls leave batch statistics as they are: for passes that only report."""
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()] if self.mixes_rows else []
        yield
        for buffer, value in buffers:
            buffer.copy_(value)


class NetworkLoss(LossModule):
    """A loss that names its networks in ``_network_names`` (each made by ``convert_to_functional``).

    ``online, target = self._bound(tensordict, name)`` are they, for this forward pass: with other tensors, where
    ``params.to_module(loss)``, an assignment or ``torch.vmap`` has put them in place.
    """

    _network_names: ClassVar[tuple[str, ...]] = ("value_network",)
    _bound_networks: dict[str, tuple[Any, Any]] | None

    def __init__(self) -> None:
        unwrap_inherited_forward(type(self))
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        # TorchRL's checks the name first, 2 us per read of a submodule; it is called for everything else only.
        modules = self.__dict__.get("_modules")
        if modules is not None and name in modules and not name.startswith("target_"):
            return modules[name]
        return super().__getattr__(name)

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> Any:
        return BoundNetwork(getattr(self, name), params, private=private)

    def _bind(self) -> None:
        groups = {name: getattr(self, f"{name}_params") for name in self._network_names}
        self._bound_networks = None
        if not any(nn.parameter.is_lazy(p) for group in groups.values() for p in group.parameters()):
            self._bound_networks = {
                name: (self._make_bound(name, group, False), self._make_bound(name, self._target_params(name), True))
                for name, group in groups.items()
            }

    def _target_params(self, name: str = "value_network") -> TensorDictBase:
        # Not self.target_*, which warns until there is an updater (forward warns, too), unless it has to fill in lazy
        # parameters. Without a target network TorchRL reads `params.data`, which vmap refuses.
        params = self._modules.get(f"target_{name}_params")
        if params is None:
            return getattr(self, f"{name}_params").apply(lambda tensor: tensor.detach())
        return getattr(self, f"target_{name}_params") if getattr(params, "uninitialized_keys", None) else params  # type: ignore[return-value]

    def _bound(self, tensordict: TensorDictBase, name: str = "value_network") -> tuple[Any, Any]:
        if self._bound_networks is None:  # lazy: one pass gives the parameters their shapes
            with torch.no_grad():
                for network in (getattr(self, n) for n in self._network_names):
                    network(tensordict.select(*network.in_keys))
            self._bind()
        first, target = self._bound_networks[name]  # type: ignore[index]
        online = first.at(self._modules[f"{name}_params"])
        params = self._modules.get(f"target_{name}_params")
        if params is not None:
            return online, target.at(params)
        return online, target if online is first else target.at(self._target_params(name))

    def _apply(self, fn: Any) -> Any:
        super()._apply(exact_where_possible(fn))
        self._bind()  # .to() and .double() replace the target tensors
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound_networks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()  # a copy holds tensors of its own


def pointers(tensors: list[Tensor]) -> list[int]:
    """Where the tensors lie: assigning to a parameter's ``data`` moves it, and it stays the same parameter."""
    return [tensor.data_ptr() for tensor in tensors]


def _same_tensors(one: TensorDictBase, other: TensorDictBase) -> bool:
    """Whether two tensordicts hold the very same tensors."""
    tensors = dict(other.items(True, True))
    return all(tensors.get(key) is tensor for key, tensor in one.items(True, True))


def _copied(network: TensorDictModuleBase) -> TensorDictModuleBase:
    """A deep copy, also of modules that keep a computed tensor among their attributes (old-style ``weight_norm``)."""
    attributes = [value for module in network.modules() for value in vars(module).values()]
    computed = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in computed})


def _shares_tensors(network: nn.Module, params: TensorDictBase) -> bool:
    # Buffers too: a cast of the loss gives it new ones, and leaves the network its own (the bounds of an actor, say).
    held = params.flatten_keys(".")
    return all(held.get(name) is t for name, t in (*network.named_parameters(), *network.named_buffers()))
