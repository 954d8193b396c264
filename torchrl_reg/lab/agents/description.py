"""A description of a policy as JSON, the same modules made from it again, and which modules a file may name."""

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
    """A file names a module that was neither imported nor trusted by the caller; the message says which."""


def trusted_module(name: str, trust: Collection[str]) -> ModuleType:
    """The module that a file names: one that is imported already, or that ``trust`` (or a package above it) names.

    Importing a module runs its code, so a file that anybody may have written has none imported.

    Raises:
        Untrusted: it is neither.
    """
    if is_trusted(name, trust):
        if os.getcwd() not in sys.path:  # where a run finds it, too
            sys.path.append(os.getcwd())
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            where = "from the working directory and PYTHONPATH"
            raise Untrusted(f"names the module {name!r}, which cannot be imported {where}: {error}") from None
    module = sys.modules.get(name)
    if module is None:
        raise Untrusted(
            f"names the module {name!r}, which nobody has imported here: if you trust it, pass "
            f"load_policy(..., trust=[{name!r}]), or --trust {name} to a command"
        )
    return module


def is_trusted(name: str, trust: Collection[str]) -> bool:
    """Whether ``trust`` names the module ``name`` or a package above it."""
    return any(name == each or name.startswith(f"{each}.") for each in trust)


Description = dict[str, Any]
_SPECS = ("Categorical", "OneHot")
_LARGEST = 1_000_000  # integer in a description: larger sizes would fill the memory before their weights are counted


class Undescribed(ValueError):
    """A module whose making is not on record."""


def described(policy: nn.Module) -> Description:
    """What ``policy`` is made of; its coefficients (epsilon, tau, priors) are buffers and come with the weights.

    Raises:
        Undescribed: a part of it keeps no record, or has hooks.
    """
    for below in policy.modules():
        if below._forward_hooks or below._forward_pre_hooks:
            raise Undescribed(f"hooks on a {type(below).__name__}")
    description: Description = _described(policy)
    return description


#: TorchRL's classes keep no record: the arguments that make such a module again.
_ARGUMENTS: dict[type, Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    QValueActor: lambda it: ((it.module[0].module,), {"spec": it.spec["action"], "in_keys": list(it.in_keys)}),
    EGreedyModule: lambda it: ((it.spec["action"],), {}),
    TensorDictSequential: lambda it: (tuple(it.module), {}),
}


def _described(value: Any) -> Any:
    if isinstance(value, Coefficient | torch.Tensor):
        return (value.value if isinstance(value, Coefficient) else value).tolist()
    if isinstance(value, nn.Module):
        own, made_as = vars(value), _ARGUMENTS.get(type(value))  # a subclass may act differently
        if "built_with" not in own and made_as is None:
            raise Undescribed(f"no description of {type(value).__name__}")
        args, kwargs = own.get("built_with") or made_as(value)  # type: ignore[misc]
        path = own.get("built_by") or path_of(type(value))
        return {"call": path, "args": _described(args), "kwargs": {k: _described(v) for k, v in kwargs.items()}}
    if isinstance(value, TensorSpec) and type(value).__name__ in _SPECS:
        return {"spec": type(value).__name__, "n": int(value.space.n)}
    if dataclasses.is_dataclass(value):
        return {"call": path_of(type(value)), "settings": dataclasses.asdict(value)}  # type: ignore[arg-type]
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, torch.device):
        return None  # a loaded policy begins on the CPU
    raise Undescribed(f"a policy that was built with a {type(value).__name__}")


def built(description: Description, *, trust: Collection[str] = ()) -> Any:
    """A module with this description (see :func:`described`), on the CPU, with weights of its own.

    The global generators are left as they were: a run builds one in the middle of its training.

    Args:
        description: plain JSON, of any origin.
        trust: modules that may be imported, and any class of networks in them called.

    Raises:
        Untrusted: it names a module that is neither imported nor trusted.
        ValueError: a class or function that no file may name.
    """
    for value in _within(description):
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"An integer must be at most {_LARGEST:,}, got {value:,}.")
    with torch.random.fork_rng(devices=[]):
        return _built(description, trust)


def _built(said: Any, trust: Collection[str]) -> Any:
    if isinstance(said, list):
        return [_built(each, trust) for each in said]
    if not isinstance(said, dict):
        return said
    if "spec" in said:
        if said["spec"] not in _SPECS:
            raise ValueError(f"spec must be one of {', '.join(_SPECS)}, got {said['spec']!r}.")
        return getattr(torchrl.data, said["spec"])(said["n"], dtype=torch.int64)
    called = _named(said["call"], trust)
    if "settings" in said:
        return called(**said["settings"])
    args, kwargs = _built(said["args"], trust), {k: _built(v, trust) for k, v in said["kwargs"].items()}
    made = called(*args, **kwargs)
    return record(made, said["call"], *args, **kwargs) if is_trusted(_module(said["call"]), trust) else made


def _named(path: str, trust: Collection[str]) -> Any:
    module, name = _module(path), path.partition(":")[2]
    # Not getattr: a module that imports what it offers when it is asked for would do so.
    found = vars(trusted_module(module, trust)).get(name)
    if found is None:
        raise ValueError(f"call must name something in its module, got {path!r}.")
    # Even what the caller trusts is a module of a network, and never `os:system`.
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    if is_trusted(module, trust) and is_network:
        return found
    if not (getattr(found, "is_rebuildable", False) is True or found in _ARGUMENTS):
        or_trusted = f", or a module of trust=[{module!r}] (--trust {module})" if is_network else ""
        raise ValueError(f"call must name what says that a file may name it{or_trusted}, got {path!r}.")
    return found


def _module(path: str) -> str:
    return path.partition(":")[0]


def modules_of(description: Description) -> set[str]:
    """The modules that a description names."""
    return {_module(value["call"]) for value in _within(description) if isinstance(value, dict) and "call" in value}


def check_actions(description: Description, spaces: Spaces) -> None:
    """Refuses a choice between other actions than those of the environment.

    Raises:
        ValueError: there is one.
    """
    for value in _within(description):
        if isinstance(value, dict) and value.get("spec") in _SPECS and value["n"] != spaces.num_actions:
            raise ValueError(f"A choice must be between {spaces.num_actions} actions, got {value['n']}.")


def _within(said: Any) -> Iterator[Any]:
    """``said`` and everything nested in it."""
    yield said
    for value in said.values() if isinstance(said, dict) else said if isinstance(said, list) else ():
        yield from _within(value)


@contextmanager
def weights_of_at_most(size: int) -> Iterator[None]:
    """Refuses parameters that take more than ``size`` bytes together, before they are filled."""
    left = size

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.nbytes
        if left < 0:
            raise ValueError(f"Its weights must take the {size:,} bytes of the file, got more.")

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def spaces_of(policy: nn.Module) -> Spaces:
    """The spaces that the first network in ``policy`` was built for.

    Raises:
        ValueError: none was built for any.
    """
    for args, kwargs in (vars(module).get("built_with", ((), {})) for module in policy.modules()):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Spaces):
                return value
    raise ValueError("A description must have the spaces of an environment in it, got none.")
