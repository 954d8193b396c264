"""The composed settings as the recipe's dataclass, and objects from settings that name their class."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from torchrl_reg.lab.errors import UserError, require
from torchrl_reg.modules.rebuilding import record


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
        UserError: there is nothing at that path, or it takes other arguments.

    >>> build({"path": "fractions:Fraction", "numerator": 3, "denominator": 4}, "ratio")
    Fraction(3, 4)
    >>> build({"path": "fractions:Fractoin"}, "ratio")
    Traceback (most recent call last):
    torchrl_reg.lab.errors.UserError: ratio.path must name something in fractions, got 'Fractoin'.
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
        raise UserError(f"{name}.path must name a class or a function, got {path!r}.")
    signature = _signature(called)
    try:
        signature.bind(*arguments, **options, **more)
    except TypeError:
        own = [each for each in list(signature.parameters)[len(arguments) :] if each not in more]
        takes, got = (", ".join(f"{name}.{each}" for each in names) or "none" for names in (own, options))
        raise UserError(f"{name} must have the settings that {path} takes ({takes}), got {got}.") from None
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
        raise UserError(
            f"{name}.path must name a module in the working directory or on PYTHONPATH, got {path!r}."
        ) from None
    if not hasattr(found, attribute):
        raise UserError(f"{name}.path must name something in {module}, got {attribute!r}.")
    return getattr(found, attribute)


_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a mapping"}
_EXPECTED |= {list: "a list"}
_SPELLINGS = dict.fromkeys(("true", "yes", "on", "y", "1"), True)
_SPELLINGS |= dict.fromkeys(("false", "no", "off", "n", "0"), False)
_MISSING = "???"  # as OmegaConf writes it


def plain_defaults(config_class: type) -> dict[str, Any]:
    """The defaults of ``config_class`` without its types, for Hydra to compose; missing groups with theirs."""
    hints, found = typing.get_type_hints(config_class), dict[str, Any]()
    for item in dataclasses.fields(config_class):
        kind, make = hints[item.name], item.default_factory
        value: Any = item.default if make is dataclasses.MISSING else make()
        if value is dataclasses.MISSING or value == _MISSING:
            value = plain_defaults(typing.cast(type, kind)) if dataclasses.is_dataclass(kind) else _MISSING
        found[item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(type(value)) else value
    return found


def typed(composed: DictConfig, config_class: type) -> Any:
    """``composed`` as an instance of ``config_class``; a whole number written 1e6 is an integer.

    Args:
        composed: by Hydra, which knows no types.
        config_class: the recipe's.

    Raises:
        UserError: a setting does not exist, has a wrong type or refers to nothing.
    """
    try:
        plain = typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} cannot be resolved: {first_line(error)}.") from None
    for name in unknown_names(dotted_names(plain), config_class):
        if name not in learning_settings():  # an environment's, for other recipes; those typed are refused before
            raise UserError(unknown_setting(name, config_class))
        del plain["algo"][name.removeprefix("algo.")]
    return converted(plain, config_class, "")


@cache
def learning_settings() -> frozenset[str]:
    """What environments may say of learning, each for the recipes that have such a setting: ``algo.n_steps``, ..."""
    from torchrl_reg.lab import PolicyLearning, RolloutLearning, ValueLearning

    kinds = (PolicyLearning, RolloutLearning, ValueLearning)
    return frozenset(f"algo.{item.name}" for kind in kinds for item in dataclasses.fields(kind))


def converted(value: Any, kind: Any, name: str) -> Any:
    """``value`` as a ``kind``: a whole 1e6 is an integer, ``yes`` is true.

    Raises:
        UserError: it is none: "``name`` must be <kind>, got <value>."
    """
    if value == _MISSING:
        raise UserError(f"{name} must have a value, got none; set it, {name}=<value>.")
    if value is None and kind is not Any and types.NoneType not in typing.get_args(kind):
        raise UserError(f"{name} must have a value, got null.")
    if value is None:
        return None
    kinds = _alternatives(kind)
    kind, form = kinds[0], typing.get_origin(kinds[0]) or kinds[0]
    if dataclasses.is_dataclass(form):
        return _instance(value, typing.cast(type, form), name)
    if form is list:
        if not isinstance(value, list):
            sentence = f"{name} must be a list, written [a,b]."
            raise UserError(sentence)
        (item,) = typing.get_args(kind)
        return [converted(each, item, f"{name}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, dict) and form in (dict, Any):
        return {key: converted(each, Any, f"{name}.{key}") for key, each in value.items()}
    return value if form is Any or type(value) in kinds else _leaf(value, kinds, name)


def _instance(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, dict):
        sentence = f"{name} is a group of settings; set one of them, {name}.<name>=<value>."
        raise UserError(sentence)
    hints, prefix = typing.get_type_hints(kind), name and f"{name}."
    return kind(**{key: converted(each, hints[key], f"{prefix}{key}") for key, each in value.items()})


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """``(int, str)`` of ``int | str | None``."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return tuple(each for each in typing.get_args(kind) if each is not types.NoneType) if is_union else (kind,)


def _leaf(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    for kind in kinds:
        with suppress(ValueError, TypeError):
            return _read(value, kind)
    bare = bool in kinds and not isinstance(value, str)
    raise UserError(misfit(name, kinds, str(value) if bare else repr(str(value))))


def misfit(name: str, kinds: Any, shown: str) -> str:
    """``algo.gamma must be a number, got 'abc'.``"""
    leaves = [typing.get_origin(each) or each for kind in kinds for each in _alternatives(kind)]
    known = [_EXPECTED.get(leaf, getattr(leaf, "__name__", str(leaf))) for leaf in leaves]
    return f"{name} must be {' or '.join(known)}, got {shown}."


def _read(value: Any, kind: Any) -> Any:
    """Raises ValueError or TypeError for what is no ``kind``."""
    if kind is bool and str(value).lower() in _SPELLINGS:
        return _SPELLINGS[str(value).lower()]
    fraction = kind is int and isinstance(value, float) and not (value.is_integer() and abs(value) < 1e19)
    if fraction or kind is bool or isinstance(value, list | dict) or (isinstance(value, bool) and kind is not str):
        raise ValueError
    return kind(value)


def unknown_setting(name: str, config_class: type) -> str:
    """``algo.taau is not a setting; did you mean algo.tau?``"""
    known = list(field_kinds(config_class))
    by_end = {known_name.rpartition(".")[2]: known_name for known_name in reversed(known)}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    end = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.75)
    guess = near[0] if near else by_end[end[0]] if end else None
    hint = f"; did you mean {guess}?" if guess else "; --cfg job lists all settings."
    return f"{name} is not a setting{hint}"


def unknown_names(names: Iterator[str] | list[str], config_class: type) -> list[str]:
    """Those of the dotted ``names`` that are no settings; below a list or a mapping all names are possible."""
    kinds = field_kinds(config_class)

    def is_known(name: str) -> bool:
        above = name.rpartition(".")[0]
        return name in kinds or (above != "" and not dataclasses.is_dataclass(kinds.get(above)) and is_known(above))

    return [name for name in names if not is_known(name)]


def dotted_names(node: Any, prefix: str = "") -> Iterator[str]:
    """``"algo", "algo.tau", ...`` of nested mappings."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield f"{prefix}{key}"
        yield from dotted_names(value, f"{prefix}{key}.")


def field_kinds(config_class: type, prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names, groups of them included, with their types."""
    hints, found = typing.get_type_hints(config_class), dict[str, Any]()
    for item in dataclasses.fields(config_class):
        name, kind = f"{prefix}{item.name}", hints[item.name]
        found[name] = kind
        if dataclasses.is_dataclass(kind):
            found |= field_kinds(typing.cast(type, kind), f"{name}.")
    return found


def first_line(error: BaseException) -> str:
    """The first line of its message, without a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".")
