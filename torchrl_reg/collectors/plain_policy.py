"""Policies called on plain tensors, which saves the cost of a TensorDict per step where the modules are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl.modules import EGreedyModule, ProbabilisticActor, QValueActor, QValueModule, SafeModule
from torchrl.modules.tensordict_module import SafeSequential

from torchrl_reg.modules import BoltzmannQActor
from torchrl_reg.modules.layers import layer_by_layer

State = dict[Any, Tensor]
#: Reads its inputs ``[N, ...]`` from a state and writes its outputs there.
PlainPolicy = Callable[[State], None]


def plain_policy(
    policy: Callable[..., Any], num_envs: int, device: torch.device, *, explores: bool = True
) -> PlainPolicy:
    """``policy`` as a function of a dict of tensors ``[num_envs, ...]``, with random exploration or none.

    Sequences, modules around a network, Q-value modules, Boltzmann policies and epsilon-greedy exploration need no
    TensorDict, nor does any module with its own ``plain(state)``, defined in the same class as its ``forward``.
    Anything else is given a TensorDict built from the state so far.
    """
    parts = [_part(module, num_envs, device, explores) for module in policy_parts(policy, explores)]
    if len(parts) == 1:
        return parts[0]

    def act(state: State) -> None:
        for part in parts:
            part(state)

    return act


def policy_parts(policy: Any, explores: bool = True) -> list[Any]:
    """The modules that act in turn, with nested sequences flattened; just ``policy`` if it is not a sequence."""
    sequences = (TensorDictSequential, SafeSequential, QValueActor, ProbabilisticActor)
    known = type(policy) in sequences or (
        isinstance(policy, QValueActor) and type(policy).forward is QValueActor.forward
    )
    if type(policy) is BoltzmannQActor and not has_hooks(policy) and explores:
        return [*policy_parts(policy.actor), _Chosen(policy.choose)]
    selects = getattr(policy, "partial_tolerant", False) or getattr(policy, "_select_before_return", False)
    if not known or has_hooks(policy) or selects:
        return [policy]
    return [part for module in policy.module for part in policy_parts(module, explores)]


class _Chosen(NamedTuple):
    """A function of the state, among modules."""

    call: PlainPolicy


def has_hooks(module: torch.nn.Module) -> bool:
    """True if something else is called whenever the module is."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _part(module: Any, num_envs: int, device: torch.device, explores: bool) -> PlainPolicy:
    kind = type(module)
    if kind is _Chosen:
        return module.call
    unheard = isinstance(module, torch.nn.Module) and not has_hooks(module)
    if unheard:
        if kind in (TensorDictModule, SafeModule) and _is_simple(module):
            return _network(module)
        if kind is QValueModule and module.action_space == "categorical" and module.action_mask_key is None:
            return _greedy(module)
        if explores and _has_plain_form(kind):
            return module.plain  # type: ignore[return-value]
        unmasked = kind is EGreedyModule and module.action_mask_key is None
        if explores and unmasked and isinstance(module.action_key, str):
            return _epsilon_greedy(module, num_envs)
    return _through_a_tensordict(module, num_envs, device)


def _has_plain_form(kind: type) -> bool:
    """True if ``plain`` belongs to the current ``forward`` rather than to one that a subclass has replaced."""
    levels = (vars(level).keys() for level in kind.__mro__)
    return next(("plain" in own for own in levels if {"plain", "forward"} & own), False)


def _is_simple(module: TensorDictModule) -> bool:
    """True if the module does nothing but call the network on the in-keys, in order."""
    named = module.out_keys_source == module.out_keys and "_" not in module.out_keys
    special = module.method or module._kwargs or module.method_kwargs or module._get_kwargs
    return named and not special and module.inplace is True


def _network(module: TensorDictModule) -> PlainPolicy:
    network, in_keys, out_keys = layer_by_layer(module.module), list(module.in_keys), list(module.out_keys)

    def call(state: State) -> None:
        outputs = network(*[state[key] for key in in_keys])
        if isinstance(outputs, Tensor):
            state[out_keys[0]] = outputs
        else:
            state.update(zip(out_keys, outputs, strict=False))

    return call


def _greedy(module: QValueModule) -> PlainPolicy:
    q_key, (action_key, _, chosen_key) = module.in_keys[0], module.out_keys

    def call(state: State) -> None:
        q = state[q_key]
        action = q.argmax(-1)
        state[action_key] = action
        state[chosen_key] = q.gather(-1, action.unsqueeze(-1))

    return call


def epsilon_draws(module: EGreedyModule, num_envs: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Draws as ``module`` does, in its order: whether to explore (bool ``[num_envs]``), and the action if so."""
    spec = module.spec[module.action_key]
    spec = spec.expand(num_envs, *spec.shape)
    return lambda: (torch.rand(num_envs, device=module.eps.device) < module.eps, spec.rand())


def _epsilon_greedy(module: EGreedyModule, num_envs: int) -> PlainPolicy:
    key, draw = module.action_key, epsilon_draws(module, num_envs)

    def call(state: State) -> None:
        action = state[key]
        explores, random = draw()
        if action.ndim > 1:
            explores = explores.reshape(-1, *[1] * (action.ndim - 1))
        state[key] = torch.where(explores, random, action)

    return call


def _through_a_tensordict(module: Callable[..., Any], num_envs: int, device: torch.device) -> PlainPolicy:
    def call(state: State) -> None:
        given = TensorDict(dict(state), [num_envs], device=device)  # type: ignore[arg-type]
        out = module(given)
        for key, value in out.items(include_nested=True, leaves_only=True):
            state[key] = value

    return call
