"""Objects from settings that name their class: ``{"path": "my_module:MyRegularizer", "tau": 0.1}``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from torchrl_reg.modules.rebuilding import record
from torchrl_reg.training.errors import ConfigError, require


def build(settings: Mapping[str, Any], name: str, *arguments: Any, **more: Any) -> Any:
    """Calls what ``settings["path"]`` names with ``arguments``, the other settings and ``more``.

    A setting that has a ``path`` itself is built first. None where ``path`` is None.

    Args:
        settings: ``path`` as ``module:Name``, found as by ``import``, in the working directory too; keyword arguments;
            and ``name``, which says in the record what this is and goes nowhere.
        name: what error messages call them: ``"regularizer"``.

    Returns:
        What that call returns.

    Raises:
        ConfigError: there is nothing at that path, or it takes other arguments.

    >>> build({"path": "fractions:Fraction", "numerator": 3, "denominator": 4}, "ratio")
    Fraction(3, 4)
    >>> build({"path": "fractions:Fractoin"}, "ratio")
    Traceback (most recent call last):
    torchrl_reg.training.errors.ConfigError: ratio.path must name something in fractions, got 'Fractoin'.
    """
    path = settings.get("path")
    if path is None:
        return None
    options: dict[str, Any] = {key: value for key, value in settings.items() if key not in ("name", "path")}
    for key, value in options.items():
        if isinstance(value, Mapping) and "path" in value:
            options[key] = build(value, f"{name}.{key}")
    called = _imported(path, name)
    if not callable(called):
        raise ConfigError(f"{name}.path must name a class or a function, got {path!r}.")
    signature = _signature(called)
    try:
        signature.bind(*arguments, **options, **more)
    except TypeError:
        own = [each for each in list(signature.parameters)[len(arguments) :] if each not in more]
        takes, got = (", ".join(f"{name}.{each}" for each in names) or "none" for names in (own, options))
        raise ConfigError(f"{name} must have the settings that {path} takes ({takes}), got {got}.") from None
    made = called(*arguments, **options, **more)
    return record(made, path, *arguments, **options, **more) if isinstance(made, nn.Module) else made


def _signature(called: Any) -> inspect.Signature:
    """That of a function, or of a class's ``__init__``: a ``__new__`` that takes anything would hide it."""
    if not isinstance(called, type):
        return inspect.signature(called)
    begins: Any = called
    bare = begins.__init__ is object.__init__ and begins.__new__ is object.__new__
    if bare or begins.__init__ is nn.Module.__init__:  # written as taking anything, they take nothing
        return inspect.Signature()
    return inspect.signature(partial(begins.__init__, None))


def _imported(path: Any, name: str) -> Any:
    module, colon, attribute = str(path).partition(":")
    absolute = bool(module and colon and attribute) and not module.startswith(".")
    require(absolute, f"{name}.path", "an import path, written module:Name", path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that it needs
        raise ConfigError(
            f"{name}.path must name a module in the working directory or on PYTHONPATH, got {path!r}."
        ) from None
    if not hasattr(found, attribute):
        raise ConfigError(f"{name}.path must name something in {module}, got {attribute!r}.")
    return getattr(found, attribute)
