"""Policies to and from JSON, and the modules that such a file may import."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torchrl.data
from tensordict.nn import TensorDictSequential
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchrl.data import TensorSpec
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.modules.rebuilding import Spaces, path_of, record
from torchrl_reg.regularizers import Coefficient


class Untrusted(ValueError):
    """A file names a module that is neither imported nor trusted by the caller."""


def trusted_module(name: str, trust: Collection[str]) -> ModuleType:
    """The module ``name`` of a file, if it is imported already or in ``trust``, itself or by a package above it.

    Importing a module runs its code, so an untrusted file must not cause any import.

    Raises:
        Untrusted: a module that is neither.
    """
    if is_trusted(name, trust):
        if os.getcwd() not in sys.path:  # runs import from there as well
            sys.path.append(os.getcwd())
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            where = "from the working directory and PYTHONPATH"
            raise Untrusted(f"names the module {name!r}, which cannot be imported {where}: {error}") from None
    module = sys.modules.get(name)
    if module is None:
        raise Untrusted(
            f"names the module {name!r}, which is not imported: if you trust it, pass "
            f"load_policy(..., trust=[{name!r}]), or --trust {name} to a command"
        )
    return module


def is_trusted(name: str, trust: Collection[str]) -> bool:
    """True if ``name`` or a package above it is in ``trust``."""
    return any(name == trusted or name.startswith(f"{trusted}.") for trusted in trust)


Description = dict[str, Any]
_SPECS = ("Categorical", "OneHot")
_MAX_INTEGER = 1_000_000  # in a description: larger sizes could exhaust the memory before weights are counted


class Undescribed(ValueError):
    """A module without a record of its constructor arguments."""


def describe(policy: nn.Module) -> Description:
    """Constructors and arguments of ``policy``; coefficients (epsilon, tau, priors) are saved with the weights.

    Raises:
        Undescribed: a submodule without a record of its arguments, or with hooks.
    """
    for module in policy.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Undescribed(f"hooks on a {type(module).__name__}")
    description: Description = _describe(policy)
    return description


#: Constructor arguments of TorchRL's classes, which do not record them.
_ARGUMENTS: dict[type, Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    QValueActor: lambda actor: (
        (actor.module[0].module,),
        {"spec": actor.spec["action"], "in_keys": list(actor.in_keys)},
    ),
    EGreedyModule: lambda module: ((module.spec["action"],), {}),
    TensorDictSequential: lambda sequence: (tuple(sequence.module), {}),
}


def _describe(value: Any) -> Any:
    if isinstance(value, Coefficient | torch.Tensor):
        return (value.value if isinstance(value, Coefficient) else value).tolist()
    if isinstance(value, nn.Module):
        attributes, arguments = vars(value), _ARGUMENTS.get(type(value))  # not of a subclass, which may act differently
        if "built_with" not in attributes and arguments is None:
            raise Undescribed(f"no description of {type(value).__name__}")
        args, kwargs = attributes.get("built_with") or arguments(value)  # type: ignore[misc]
        path = attributes.get("built_by") or path_of(type(value))
        return {"call": path, "args": _describe(args), "kwargs": {k: _describe(v) for k, v in kwargs.items()}}
    if isinstance(value, TensorSpec) and type(value).__name__ in _SPECS:
        return {"spec": type(value).__name__, "n": int(value.space.n)}
    if dataclasses.is_dataclass(value):
        return {"call": path_of(type(value)), "settings": dataclasses.asdict(value)}  # type: ignore[arg-type]
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, torch.device):
        return None  # policies are loaded on the CPU
    raise Undescribed(f"a policy that was built with a {type(value).__name__}")


def rebuild(description: Description, *, trust: Collection[str] = ()) -> Any:
    """A module with this description (see :func:`describe`), on the CPU, with newly initialized weights.

    The global generators are restored, because runs call this while they train.

    Args:
        description: plain JSON, possibly of unknown origin.
        trust: modules that may be imported, and whose ``nn.Module`` classes may be constructed.

    Raises:
        Untrusted: a module in it is neither imported nor trusted.
        ValueError: a class or function that a file may not name.
    """
    for value in _nodes(description):
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError(f"An integer must be at most {_MAX_INTEGER:,}, got {value:,}.")
    with torch.random.fork_rng(devices=[]):
        return _rebuild(description, trust)


def _rebuild(node: Any, trust: Collection[str]) -> Any:
    if isinstance(node, list):
        return [_rebuild(item, trust) for item in node]
    if not isinstance(node, dict):
        return node
    if "spec" in node:
        if node["spec"] not in _SPECS:
            raise ValueError(f"spec must be one of {', '.join(_SPECS)}, got {node['spec']!r}.")
        return getattr(torchrl.data, node["spec"])(node["n"], dtype=torch.int64)
    build = _resolve(node["call"], trust)
    if "settings" in node:
        return build(**node["settings"])
    args, kwargs = _rebuild(node["args"], trust), {k: _rebuild(v, trust) for k, v in node["kwargs"].items()}
    module = build(*args, **kwargs)
    return record(module, node["call"], *args, **kwargs) if is_trusted(_module_name(node["call"]), trust) else module


def _resolve(path: str, trust: Collection[str]) -> Any:
    """The class or function at ``path``, "module:name", if a file may name it."""
    module, name = _module_name(path), path.partition(":")[2]
    # vars, because getattr could trigger a lazy import by the module's __getattr__.
    found = vars(trusted_module(module, trust)).get(name)
    if found is None:
        raise ValueError(f"call must name an attribute of its module, got {path!r}.")
    # Of a trusted module, networks only: otherwise trust=["os"] would allow `os:system`.
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    if is_trusted(module, trust) and is_network:
        return found
    if not (getattr(found, "is_rebuildable", False) is True or found in _ARGUMENTS):
        or_trusted = f", or a module of trust=[{module!r}] (--trust {module})" if is_network else ""
        marked = "a class or function marked by torchrl_reg.modules.rebuilding.rebuildable"
        raise ValueError(f"call must name {marked}{or_trusted}, got {path!r}.")
    return found


def _module_name(path: str) -> str:
    return path.partition(":")[0]


def modules_of(description: Description) -> set[str]:
    """The modules that a description names."""
    calls = [node["call"] for node in _nodes(description) if isinstance(node, dict) and "call" in node]
    return {_module_name(call) for call in calls}


def check_actions(description: Description, spaces: Spaces) -> None:
    """Compares the number of actions of the policy with that of the environment.

    Raises:
        ValueError: they differ.
    """
    for node in _nodes(description):
        if isinstance(node, dict) and node.get("spec") in _SPECS and node["n"] != spaces.num_actions:
            raise ValueError(f"The policy must choose between {spaces.num_actions} actions, got {node['n']}.")


def _nodes(node: Any) -> Iterator[Any]:
    """``node`` and all values nested in it."""
    yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(value)


@contextmanager
def limit_parameter_bytes(size: int) -> Iterator[None]:
    """Raises a ValueError when the parameters registered meanwhile exceed ``size`` bytes in all."""
    left = size

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.nbytes
        if left < 0:
            raise ValueError(f"The weights must take the {size:,} bytes of the file, got more.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def spaces_of(policy: nn.Module) -> Spaces:
    """The spaces of the first network in ``policy`` that records them.

    Raises:
        ValueError: no network records its spaces.
    """
    for args, kwargs in (vars(module).get("built_with", ((), {})) for module in policy.modules()):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Spaces):
                return value
    raise ValueError("A description must contain the spaces of an environment, got none.")
