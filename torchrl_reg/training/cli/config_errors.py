"""Hydra's and OmegaConf's errors as one sentence that names the setting, and what was expected."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.training.errors import ConfigError

_EXPECTED = {
    "Integer": "an integer",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "a string",
}


def check_flags(arguments: Sequence[str], fail: Callable[[str], Any]) -> None:
    """Fails on ``--tau=1``, ``--resolve`` alone and the like: argparse would print its usage, Hydra a traceback."""
    parser = get_args_parser()
    parser.error = lambda message: fail(f"{message}.")  # type: ignore[method-assign]
    known = parser._option_string_actions
    for argument in arguments:
        flag = argument.partition("=")[0]
        abbreviates = flag.startswith("--") and any(option.startswith(flag) for option in known)
        if flag.startswith("-") and flag not in known and not abbreviates:
            fail(f"{argument} is not an option; settings are written name=value, without dashes.")
        if not flag:
            fail(_unreadable(argument, None))
    asked = parser.parse_known_args(arguments)[0]
    if asked.resolve and not (asked.cfg or asked.help):
        fail("--resolve must go with --cfg job, which prints the settings, got it alone.")
    if sum(map(bool, (asked.run, asked.multirun, asked.cfg, asked.info, asked.shell_completion))) > 1:
        fail("--run, --multirun, --cfg, --info and --shell-completion must be asked for one at a time, got several.")


def check_removals(words: Sequence[str], fail: Callable[[str], Any]) -> None:
    """Fails on ``~env`` and the like: a recipe either needs what is removed, or would silently ignore the removal."""
    for word in words:
        if word.startswith("~") and not word.startswith("~hydra"):
            name = word[1:].partition("=")[0]
            fail(f"{word} would remove {name}, which this recipe needs; set it instead, {name}=<value>.")


def explain(error: Exception, config_class: type, conf: Path) -> str | None:
    """The sentence for an error of the command line or of a YAML file; None for anything else."""
    cause = error.__cause__
    for found in (error, cause, error.__context__):
        if isinstance(found, yaml.YAMLError):
            return _bad_yaml(found)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, conf)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error, conf)
    if isinstance(error, ConfigCompositionException):
        if isinstance(cause, OmegaConfBaseException):
            return explain_value(error, cause, config_class, conf)
        if misfit := _misfit(str(error)):
            return misfit
        group = re.match(r"Could not override '([^']+)'. No match in the defaults list", str(error))
        if group:
            return f"{group[1]} has no default choice; to add one write +{group[1]}=<choice>."
        if str(error).startswith("Ambiguous value"):
            return f"{_first_line(error)}; to sweep over it add -m, to pass a list write [a,b]."
    if isinstance(error, OmegaConfBaseException):  # an interpolation: it is resolved when it is read
        return explain_value(error, error, config_class, conf)
    if isinstance(error, HydraException):
        return f"{_first_line(error)}."
    return None


def explain_value(error: Exception, cause: OmegaConfBaseException, config_class: type, conf: Path) -> str:
    """The sentence for a setting that does not exist or that cannot hold the value it was given."""
    full_key = str(cause.full_key)
    refused = re.match(r"Could not override '([^']+)'", str(error))
    unknown = re.match(r"Key '([^']+)' (?:is not in struct|not in)", str(cause))
    if refused or unknown:
        return unknown_setting(refused[1] if refused else full_key, config_class, conf)
    wrong = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", str(cause))
    if wrong:
        got, kind = str(wrong[1]), str(wrong[2])
        return f"{full_key} must be {_EXPECTED.get(kind, kind)}, got {got!r}."
    if "Invalid type assigned" in str(cause):
        return f"{full_key} is a group of settings; set one of them, {full_key}.<name>=<value>."
    if "is not a ListConfig" in str(cause):
        return f"{full_key} must be a list, written [a,b]."
    if "Missing mandatory value" in str(cause):
        return f"{full_key} must be given, written {full_key}=<value>."
    if "is not Optional" in str(cause):
        return f"{full_key} must have a value, got null."
    return f"{full_key}: {_first_line(cause)}." if cause.full_key else f"{_first_line(cause)}."


def check_interpolations(node: DictConfig | ListConfig, prefix: str = "") -> None:
    """Fails on ``${...}`` that refers to nothing, to itself, or to what its setting cannot hold.

    Raises:
        ConfigError: one does; the sentence names it.
    """
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        below: Any = node._get_node(key)
        if OmegaConf.is_interpolation(node, key):
            try:
                _ = node[key]
            except OmegaConfBaseException as error:
                raise ConfigError(f"{prefix}{key} cannot be resolved: {_first_line(error)}.") from None
        elif OmegaConf.is_config(below) and not below._is_none() and not below._is_missing():
            check_interpolations(below, f"{prefix}{key}.")


def unknown_setting(name: str, config_class: type, conf: Path) -> str:
    """``algo.taau is not a setting; did you mean algo.tau?``"""
    known = setting_names(config_class, conf)
    by_end = {known_name.rpartition(".")[2]: known_name for known_name in reversed(known)}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    end = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.75)
    guess = near[0] if near else by_end[end[0]] if end else None
    hint = f"; did you mean {guess}?" if guess else "; --cfg job lists all settings."
    return f"{name} is not a setting{hint}"


def extra_settings(config: DictConfig) -> list[str]:
    """Settings that ``+name=value`` smuggled into a part of the config that has a schema."""
    extra = []
    kind = OmegaConf.get_type(config)
    names = {item.name for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    for key in map(str, config):
        if names is not None and key not in names:
            extra.append(key)
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            extra += [f"{key}.{name}" for name in extra_settings(config[key])]
    return extra


def setting_names(config_class: type, conf: Path) -> list[str]:
    """All settings by their dotted names: the dataclass's, and those the groups' YAML files set."""
    names = dict.fromkeys(field_names(config_class, ""))
    for group in getattr(config_class, "groups", {}):
        for path in sorted((conf / group).rglob("*.yaml")):
            with contextlib.suppress(yaml.YAMLError, OSError):  # another file that is broken is not the issue here
                names.update(dict.fromkeys(yaml_names(OmegaConf.load(path), yaml_prefix(path, group))))
    return list(names)


def yaml_prefix(path: Path, group: str) -> str:
    """What the names in a YAML file begin with."""
    return "" if path.read_text().startswith("# @package _global_") else f"{group}."


def field_names(kind: type, prefix: str) -> Iterable[str]:
    """All settings of a config's class by their dotted names, groups of them included."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        yield f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hints[item.name]):
            yield from field_names(hints[item.name], f"{prefix}{item.name}.")


def yaml_names(node: Any, prefix: str) -> Iterable[str]:
    """What a loaded YAML file sets, by dotted names."""
    for key in map(str, node) if isinstance(node, DictConfig) else ():
        if key == "defaults":
            continue
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key):
            yield from yaml_names(node._get_node(key), f"{prefix}{key}.")


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


def _misfit(message: str) -> str | None:
    """The sentence for a choice made for other recipes: its YAML sets what this recipe does not have."""
    found = re.match(r"In '([^'/]+)/([^']+)': (.*)", message, re.DOTALL)
    if not found:
        return None
    group, choice, reason = found.groups()
    key = re.search(r"full_key: (\S+)", reason) or re.match(r"Could not override '([^']+)'", reason)
    what = f": it sets {key[1]}, which this recipe does not have" if key else ""
    return f"{group}={choice} does not go with this recipe{what}."


def _unreadable(override: str, conf: Path | None) -> str:
    groups = [path.parent.name for path in conf.glob(f"*/{override}.yaml")] if conf else []
    hint = f"; did you mean {groups[0]}={override}?" if groups else ""
    return f"{override!r} is not of the form name=value{hint or '.'}"


def _bad_yaml(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "A file of settings"
    return f"{where} is not YAML: {problem or _first_line(error)}."


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
