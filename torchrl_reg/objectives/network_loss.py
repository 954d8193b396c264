"""The networks of a loss, permanently bound to its parameters, and its coefficients, assigned as attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.objectives import LossModule

from torchrl_reg.objectives.bound_network import BoundModule
from torchrl_reg.regularizers.checks import exact_where_possible
from torchrl_reg.regularizers.coefficient import Coefficient
from torchrl_reg.torchrl_compat import held_tensordict, unwrap_inherited_forward

#: Names that a loss without such a coefficient would otherwise take and ignore.
COEFFICIENT_NAMES = ("tau", "alpha", "beta", "lam", "clip_min", "gamma", "lmbda")


@dataclass
class _Bound:
    """One network of a loss: online and target, and the tensordicts whose tensors they hold."""

    online: Any
    target: Any
    online_key: str
    target_key: str
    held: list[Any]


class NetworkLoss(LossModule):
    """A loss that calls its networks without ``params.to_module`` each time (100 us), yet follows swapped parameters.

    A subclass names its networks in ``_network_names`` (each made by ``convert_to_functional``) and calls, in forward::

        online, target = self._bound(tensordict, "value_network")

    Both are what :meth:`_bound_module` returns (:class:`~torchrl_reg.objectives.bound_network.BoundQNetwork` for the
    Q-learning losses, to be called on a tensordict; ``.network`` is the module itself, for a head that calls other
    methods of it). Ask for them in every forward and keep neither: where ``with params.to_module(loss)``, an assigned
    ``loss.value_network_params`` or ``torch.vmap`` has put other tensors in place, they are networks with those.
    """

    #: The networks the loss was built from; ``<name>_params`` and ``target_<name>_params`` are their parameters.
    _network_names: ClassVar[tuple[str, ...]] = ("value_network",)
    _bound_networks: dict[str, _Bound] | None

    def __init__(self) -> None:
        unwrap_inherited_forward(type(self))
        super().__init__()

    # -- coefficients -------------------------------------------------------------------------------------------

    def _coefficients(self) -> dict[str, Coefficient]:
        """Every coefficient of the loss and its parts, by the name of the attribute: ``loss.tau = 0.1`` assigns it."""
        return {}

    def _assignable(self) -> dict[str, Coefficient] | None:
        """Those coefficients; None while the loss is under construction, which ends with its value estimator."""
        ready = self.__dict__.get("_modules", {}).get("_value_estimator") is not None
        return self._coefficients() if ready else None

    def __getattr__(self, name: str) -> Any:
        # TorchRL's checks the name first, 2 us per read of a submodule; it is called for everything else only.
        modules = self.__dict__.get("_modules")
        if modules is not None and name in modules and not name.startswith("target_"):
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            held = self._assignable() or {}
            if name in held:
                return held[name].value
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        held = None if hasattr(type(self), name) else self._assignable()
        if held is not None and name in held:
            held[name].assign(value)
            return
        kept = isinstance(value, nn.Module | nn.Parameter) or name not in COEFFICIENT_NAMES
        if held is not None and not kept and not hasattr(self, name):
            raise AttributeError(
                f"{type(self).__name__} has no coefficient {name!r} to assign, only {', '.join(held) or 'none'}; gamma "
                "and lmbda are given to make_value_estimator, and an attribute of one's own is declared in its class."
            )
        super().__setattr__(name, value)

    # -- networks -----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Hold the online and the target parameters in networks that can be called directly."""
        self._bound_networks = None
        params = {name: getattr(self, f"{name}_params") for name in self._network_names}
        if any(nn.parameter.is_lazy(p) for group in params.values() for p in group.parameters()):
            return
        self._bound_networks = {}
        for name, group in params.items():
            online = self._bound_module(name, group, False)
            target = self._bound_module(name, self._target_params(name), True)
            key, target_key = f"{name}_params", f"target_{name}_params"
            held = [held_tensordict(self._modules[k]) if k in self._modules else None for k in (key, target_key)]
            self._bound_networks[name] = _Bound(online, target, key, target_key, held)

    def _bound_module(self, name: str, params: TensorDictBase, private: bool) -> BoundModule:
        """The network ``name`` holding ``params``; a subclass may return a kind of its own."""
        return BoundModule(getattr(self, name), params, private=private)

    def _target_params(self, name: str = "value_network") -> TensorDictBase:
        # Read around LossModule.__getattr__, which warns until an updater exists (forward warns too), unless it has
        # to fill in lazy parameters or stand in for a target network that was not asked for.
        params = self._modules.get(f"target_{name}_params")
        if params is None:  # TorchRL reads `params.data`, which vmap refuses
            return getattr(self, f"{name}_params").apply(lambda tensor: tensor.detach())
        if getattr(params, "uninitialized_keys", None):
            return getattr(self, f"target_{name}_params")
        return params  # type: ignore[return-value]

    def _bound(self, tensordict: TensorDictBase, name: str = "value_network") -> tuple[Any, Any]:
        """The online and the target network of that name, to be called in this forward pass only."""
        if self._bound_networks is None:  # lazy: one pass gives the parameters their shapes
            with torch.no_grad():
                for network in (getattr(self, n) for n in self._network_names):
                    network(tensordict.select(*network.in_keys))
            self._bind()
        assert self._bound_networks is not None
        bound = self._bound_networks[name]
        modules, held = self._modules, bound.held
        online = held_tensordict(modules[bound.online_key])
        target = held_tensordict(modules[bound.target_key]) if bound.target_key in modules else None
        if online is held[0] and target is held[1]:
            return bound.online, bound.target
        # After a swap, what is restored is a copy of the tensordict with the same tensors.
        if _same_tensors(online, held[0]) and _same_tensors(target, held[1]):
            bound.held = [online, target]
            return bound.online, bound.target
        return bound.online.holding(getattr(self, bound.online_key)), bound.target.holding(self._target_params(name))

    def _apply(self, fn: Any) -> Any:
        super()._apply(exact_where_possible(fn))
        self._bind()  # .to() and .double() replace the target tensors
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound_networks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()  # a copy holds tensors of its own


def _same_tensors(one: TensorDictBase | None, other: TensorDictBase | None) -> bool:
    """Whether two tensordicts hold the very same tensors."""
    if one is None or other is None:
        return one is other
    tensors = dict(other.items(True, True))
    return all(tensors.get(key) is tensor for key, tensor in one.items(True, True))
