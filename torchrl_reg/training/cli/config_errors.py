"""The composed settings as the recipe's dataclass, and errors as one sentence that names the setting."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.training.errors import ConfigError

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a mapping"}


def plain_defaults(config_class: type) -> dict[str, Any]:
    """The defaults of ``config_class`` without its types, for Hydra to compose; missing groups with theirs."""
    schema = OmegaConf.structured(config_class)
    for name, kind in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind) and OmegaConf.is_missing(schema, name):
            schema[name] = kind
    return typing.cast(dict[str, Any], OmegaConf.to_container(schema))


def typed(composed: DictConfig, config_class: type, conf: Path, choices: Mapping[str, str]) -> Any:
    """``composed`` as an instance of ``config_class``; a whole number written 1e6 is an integer.

    Args:
        composed: by Hydra, which knows no types.
        config_class: the recipe's.
        conf: the folder of the groups' YAML files.
        choices: the chosen file of each group, which is named if it sets what the recipe does not have.

    Raises:
        ConfigError: a setting does not exist, has a wrong type or refers to nothing.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key} cannot be resolved: {_first_line(error)}.") from None
    schema = OmegaConf.structured(config_class)
    unknown = _fill(schema, config_class, typing.cast(dict[str, Any], plain), "")
    for name in (name for name in unknown if name not in getattr(config_class, "not_taken", ())):
        raise ConfigError(_chosen_by(name, conf, choices) or unknown_setting(name, config_class))
    for name in sorted(OmegaConf.missing_keys(schema)):
        raise ConfigError(f"{name} must have a value, got none; set it, {name}=<value>.")
    return OmegaConf.to_object(schema)


def _fill(node: DictConfig, config_class: type, plain: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Sets all in ``plain``; yields names that ``config_class`` does not have."""
    kinds = typing.get_type_hints(config_class)
    for key, value in plain.items():
        name, kind = f"{prefix}{key}", kinds.get(key)
        if kind is None:
            yield name
        elif dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                sentence = f"{name} is a group of settings; set one of them, {name}.<name>=<value>."
                raise ConfigError(sentence)
            node[key] = kind if OmegaConf.is_missing(node, key) else node[key]
            yield from _fill(node[key], typing.cast(type, kind), value, f"{name}.")
        else:
            try:
                node[key] = _whole(value, leaf_types(kind))
            except OmegaConfBaseException:
                raise ConfigError(_misfit(name, value, kind)) from None


def leaf_types(kind: Any) -> set[Any]:
    """``{int, NoneType}`` of ``list[int] | None``."""
    return {leaf for part in typing.get_args(kind) for leaf in leaf_types(part)} or {kind}


def _whole(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, list):
        return [_whole(item, kinds) for item in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e19
    return int(value) if is_whole and int in kinds and float not in kinds else value


def _misfit(name: str, value: Any, kind: Any) -> str:
    """``algo.gamma must be a number, got 'abc'.``"""
    if value is None:
        return f"{name} must have a value, got null."
    parts = [part for part in typing.get_args(kind) if part is not NoneType] if NoneType in leaf_types(kind) else [kind]
    if typing.get_origin(parts[0]) is list:
        if not isinstance(value, list):
            return f"{name} must be a list, written [a,b]."
        (item_kind,) = typing.get_args(parts[0])
        for index, item in enumerate(value):
            if not _fits(item, item_kind):
                return _misfit(f"{name}[{index}]", item, item_kind)
    known = [_EXPECTED.get(typing.get_origin(part) or part, getattr(part, "__name__", str(part))) for part in parts]
    return f"{name} must be {' or '.join(known)}, got {str(value)!r}."


def _fits(value: Any, kind: Any) -> bool:
    try:
        OmegaConf.structured(dataclasses.make_dataclass("_One", [("value", kind)])(_whole(value, leaf_types(kind))))
    except OmegaConfBaseException:
        return False
    return True


def unknown_setting(name: str, config_class: type) -> str:
    """``algo.taau is not a setting; did you mean algo.tau?``"""
    known = list(field_kinds(config_class))
    by_end = {known_name.rpartition(".")[2]: known_name for known_name in reversed(known)}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    end = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.75)
    guess = near[0] if near else by_end[end[0]] if end else None
    hint = f"; did you mean {guess}?" if guess else "; --cfg job lists all settings."
    return f"{name} is not a setting{hint}"


def field_kinds(config_class: type, prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names, groups of them included, with their types."""
    hints, found = typing.get_type_hints(config_class), dict[str, Any]()
    for item in dataclasses.fields(config_class):
        name, kind = f"{prefix}{item.name}", hints[item.name]
        found[name] = kind
        if dataclasses.is_dataclass(kind):
            found |= field_kinds(typing.cast(type, kind), f"{name}.")
    return found


def yaml_settings(path: Path, group: str) -> set[str]:
    """Dotted names of what a YAML file of ``group`` sets."""
    prefix = "" if path.read_text().startswith("# @package _global_") else f"{group}."
    return {f"{prefix}{name}" for name in _yaml_names(OmegaConf.load(path))}


def _yaml_names(node: Any) -> Iterator[str]:
    for key in map(str, node) if isinstance(node, DictConfig) else ():
        if key != "defaults":
            yield key
            yield from (f"{key}.{name}" for name in _yaml_names(node._get_node(key)))


def yaml_parts(path: Path, group: str) -> list[tuple[str, str]]:
    """Group and choice of the files that a YAML file of ``group`` starts from."""
    items = [item for item in _defaults(path) if isinstance(item, str)]
    split = [item[1:].partition("/") if item.startswith("/") else (group, "/", item) for item in items]
    return [(part, choice) for part, _, choice in split if choice != "_self_"]


def yaml_groups(path: Path) -> set[str]:
    """The groups whose choice a YAML file makes."""
    keys = [str(key) for item in _defaults(path) if isinstance(item, DictConfig) for key in item]
    return {key.removeprefix("override ").lstrip("/") for key in keys}


def _defaults(path: Path) -> list[Any]:
    node = OmegaConf.load(path)
    return list(node.get("defaults", [])) if isinstance(node, DictConfig) else []


def foreign(group: str, choice: str, name: str) -> str:
    """The sentence for a choice made for other recipes: its YAML sets what this recipe does not have."""
    return f"{group}={choice} does not go with this recipe: it sets {name}, which this recipe does not have."


def _chosen_by(name: str, conf: Path, choices: Mapping[str, str]) -> str | None:
    found = [foreign(group, choice, name) for group, choice in choices.items() if _sets(name, conf, group, choice)]
    return found[0] if found else None


def _sets(name: str, conf: Path, group: str, choice: str) -> bool:
    path = conf / group / f"{choice}.yaml"
    if not path.exists():
        return False
    return name in yaml_settings(path, group) or any(_sets(name, conf, *part) for part in yaml_parts(path, group))


def explain(error: Exception, conf: Path) -> str | None:
    """The sentence for an error of the command line or of a YAML file; None for anything else."""
    for found in (error, error.__cause__, error.__context__):
        if isinstance(found, yaml.YAMLError):
            mark, problem = getattr(found, "problem_mark", None), getattr(found, "problem", None)
            where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "A file of settings"
            return f"{where} is not YAML: {problem or _first_line(found)}."
    if isinstance(error, OverrideParseException):
        groups = [path.parent.name for path in conf.glob(f"*/{error.override}.yaml")]
        hint = f"; did you mean {groups[0]}={error.override}?" if groups else "."
        return f"{error.override!r} is not of the form name=value{hint}"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error, conf)
    return f"{_first_line(error)}." if isinstance(error, HydraException | OmegaConfBaseException) else None


def _unknown_choice(error: MissingConfigException, conf: Path) -> str:
    wanted = str(error.missing_cfg_file or "")
    group, _, choice = wanted.partition("/")
    folder = conf / group
    if folder.is_dir():  # choices may lie deeper: env=minatar/breakout
        options = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    else:
        group, _, choice = wanted.rpartition("/")
        options = sorted(str(option) for option in error.options or ())
    near = difflib.get_close_matches(choice, options, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    if group == "hydra/launcher" and options == ["basic"]:
        hint = " (others come with the package hydra-submitit-launcher)"
    if not options:
        return f"{group}={choice} is not known: there is no {group}/{choice}.yaml."
    return f"{group}={choice} is not known; choose one of {', '.join(options)}{hint}."


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
