"""Networks with their parameters written in once, instead of ``to_module`` in every call.

``params.to_module(network)`` costs about 100 us a call, more than a small network's forward pass. A Q-network whose
actor adds nothing to the module inside is called on plain tensors.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType
from torchrl.modules import BatchRenorm1d, QValueActor, QValueModule
from torchrl.objectives import LossModule
from torchrl.objectives.utils import hold_out_net

from torchrl_reg.compat import BatchNorm, fast_get, wrapped_tensordict
from torchrl_reg.modules.ensembles import is_plain, pointers
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.regularizers.checks import exact_where_possible


def mixes_rows(network: nn.Module) -> bool:
    """True if a row's output depends on the other rows of its batch (batch normalization)."""
    return any(isinstance(module, (BatchNorm, BatchRenorm1d)) for module in network.modules())


class BoundNetwork:
    """A network that holds the tensors of ``params``: ``template`` itself or, if ``private``, a copy without gradients.

    ``mixes_rows`` is that of :func:`mixes_rows`.
    """

    def __init__(self, template: TensorDictModuleBase, params: TensorDictBase, *, private: bool = False) -> None:
        self.template, self._held = template, wrapped_tensordict(params)
        self.mixes_rows = mixes_rows(template)
        network = copy.deepcopy(template) if private else template
        # Also into the template: a stacked loss has other parameters there, a cast one other buffers.
        params.to_module(network)
        if private:
            network.requires_grad_(False)
        self._use(network)

    def _use(self, network: Any) -> None:
        self._network = network

    @property
    def network(self) -> Any:
        """The network, in the train or eval mode of its template."""
        self._follow_mode()
        return self._network

    def _follow_mode(self) -> None:
        # A copy does not see `actor.eval()`.
        if self._network.training != self.template.training:
            self._network.train(self.template.training)

    def at(self, params: TensorDictBase) -> Self:
        """This network if ``params`` are those it holds, else a copy with them, for this pass (under vmap, say)."""
        held = wrapped_tensordict(params)
        if held is self._held or _same_tensors(held, self._held):
            self._held = held  # after a swap, what is restored is another tensordict with the same tensors
            return self
        other, network = copy.copy(self), copy.deepcopy(self.template)
        params.to_module(network, preserve_module_state=False)
        other._use(network)
        return other


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
        self._inputs = list(getattr(self._first, "in_keys", ()))

    @property
    def inner(self) -> Any:
        """The module behind the Q-values: what gives quantiles or atoms."""
        self._follow_mode()
        assert self._first is not None
        return self._first.module

    def inputs(self, tensordict: TensorDictBase) -> list[Tensor]:
        """The observations it reads at ``tensordict``."""
        return [fast_get(tensordict, key) for key in self._inputs]

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

    def both(self, tensordict: TensorDictBase, *, call: Callable[..., Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``call(*observations)``, by default Q-values, at s and at s'; in one pass where that is exact."""
        following = fast_get(tensordict, "next")
        if call is None and self._plain is not None:
            self._follow_mode()
            call = self._plain
        if call is not None and tensordict.batch_dims and not self.mixes_rows:
            pairs = zip(self.inputs(tensordict), self.inputs(following), strict=True)
            first, second = call(*[torch.cat(pair, self._rows_dim) for pair in pairs]).chunk(2, self._rows_dim)
            return first, second
        at = self.__call__ if call is None else lambda states: call(*self.inputs(states))
        return at(tensordict), at(following)


class _InheritsForward(type(LossModule)):  # type: ignore[misc]
    """TorchRL's metaclass without its wrapper around an inherited ``forward``.

    TorchRL wraps anew at every level of subclassing, 10 us a call each, and of two bases the first one's wrapped copy
    would hide the second's ``forward``.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if "forward" not in namespace and "forward" in vars(cls):
            del cls.forward


class NetworkLoss(LossModule, metaclass=_InheritsForward):
    """A loss that names its networks in ``_network_names`` (each after ``convert_to_functional``).

    ``online, target = self._bound(tensordict, name)`` are they, for this forward pass: with other tensors, where
    ``params.to_module(loss)``, an assignment or ``torch.vmap`` has put them in place.
    """

    _network_names: ClassVar[tuple[str, ...]] = ("value_network",)
    #: Those that are read by :meth:`_detached` although they have a target network.
    _detached_names: ClassVar[tuple[str, ...]] = ()
    #: The online network, and the target network or None.
    _bound_networks: dict[str, tuple[Any, Any]] | None
    #: Online networks without gradients, the tensors whose memory they share, and where these lay then.
    _copies: dict[str, tuple[Any, list[Tensor], list[int]]]
    #: The exploration type inside ``forward``, one for all threads: a policy that acts in another one explores.
    deterministic_sampling_mode = ExplorationType.RANDOM

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> Any:
        return BoundNetwork(getattr(self, name), params, private=private)

    def _bind(self) -> None:
        groups = {name: getattr(self, f"{name}_params") for name in self._network_names}
        self._bound_networks, self._copies = None, {}
        if any(nn.parameter.is_lazy(p) for group in groups.values() for p in group.parameters()):
            return
        self._bound_networks = {
            name: (self._make_bound(name, group, False), self._bound_target(name)) for name, group in groups.items()
        }
        for name, (_, target) in self._bound_networks.items():
            if target is None or name in self._detached_names:
                self._copy(name)

    def _bound_target(self, name: str) -> Any:
        # Not self.target_*, which warns until there is an updater (forward warns, too), unless it has to fill in lazy
        # parameters.
        params = self._modules.get(f"target_{name}_params")
        if getattr(params, "uninitialized_keys", None):
            params = getattr(self, f"target_{name}_params")
        return None if params is None else self._make_bound(name, params, True)

    def _copy(self, name: str) -> None:
        params = self._modules[f"{name}_params"]
        leaves = list(params.values(True, True))
        self._copies[name] = (self._make_bound(name, params.data, True), leaves, pointers(leaves))

    def _bound(self, tensordict: TensorDictBase, name: str = "value_network") -> tuple[Any, Any]:
        """The online network, and its target network, or the online one without gradients."""
        if self._bound_networks is None:  # lazy: one pass gives the parameters their shapes
            with torch.no_grad():
                for network in (getattr(self, n) for n in self._network_names):
                    network(tensordict.select(*network.in_keys))
            self._bind()
        first, target = self._bound_networks[name]  # type: ignore[index]
        online, params = first.at(self._modules[f"{name}_params"]), self._modules.get(f"target_{name}_params")
        return online, self._detached(name, online) if params is None else target.at(params)

    def _detached(self, name: str, online: Any) -> Any:
        """``online`` of :meth:`_bound`, whose parameters get no gradient: a copy that shares their memory."""
        copied, leaves, memory = self._copies[name]
        if online is not self._bound_networks[name][0]:  # type: ignore[index]
            # Not `params.data`, which vmap refuses.
            return copied.at(self._modules[f"{name}_params"].apply(lambda tensor: tensor.detach()))
        # Parameters that were given other memory (`p.data = ...`) are the same parameters for all but the copy.
        if not torch.compiler.is_compiling() and pointers(leaves) != memory:
            self._copy(name)
        return self._copies[name][0]

    def _apply(self, fn: Any) -> Any:
        super()._apply(exact_where_possible(fn))
        self._bind()  # .to() and .double() replace the target tensors
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound_networks": None, "_copies": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()  # a copy has its own tensors


def action_values(
    network: TensorDictModuleBase, tensordict: TensorDictBase, params: TensorDictBase | None, key: NestedKey
) -> Tensor:
    """Q-values ``[*B, A]``, which ``network`` writes under ``key``, at ``tensordict``, which is left as it was."""
    inputs = tensordict.select(*network.in_keys, strict=False)
    with hold_out_net(network) if params is None else params.to_module(network, preserve_module_state=False):
        return network(inputs).get(key)


def _same_tensors(one: TensorDictBase, other: TensorDictBase) -> bool:
    """True if two tensordicts hold the very same tensors."""
    tensors = dict(other.items(True, True))
    return all(tensors.get(key) is tensor for key, tensor in one.items(True, True))
