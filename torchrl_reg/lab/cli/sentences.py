"""Errors of Hydra and OmegaConf in one sentence each, made from their fields; and what a recipe's settings are."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from torchrl_reg.lab.cli.groups import field_types, options, unsupported_choice
from torchrl_reg.lab.errors import user_sentence

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a mapping"}


def sentence(error: Exception, words: Sequence[str], config_class: type, conf: Path) -> str | None:
    """The sentence for an ``error`` of Hydra's, of OmegaConf's or of a YAML file; None for anything else.

    Args:
        error: whatever was raised.
        words: the command line.
        config_class: the recipe's.
        conf: the folder of its groups.
    """
    behind = error.__cause__ or error.__context__
    raised = [found for found in (error, behind) if found is not None]
    for found in raised:
        if isinstance(found, yaml.YAMLError):
            mark, problem = getattr(found, "problem_mark", None), getattr(found, "problem", None)
            where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "A file of settings"
            return f"{where} is not YAML: {problem or _first_line(found)}."
    if isinstance(error, MissingConfigException):
        return _unknown_choice(conf, str(error.missing_cfg_file or ""), error.options or ())
    if isinstance(error, OverrideParseException):
        word = error.override
        groups = [path.parent.name for path in conf.glob(f"*/{word}.yaml")] if word.isidentifier() else []
        return f"{word!r} is not of the form name=value{f'; did you mean {groups[0]}={word}?' if groups else '.'}"
    if isinstance(error, InstantiationException) and behind is not None:
        return user_sentence(behind) or str(behind if isinstance(behind, ImportError) else error)
    if not _of_hydra(error):
        return None
    for word in words:
        if said := unsupported_choice(conf, word, config_class):
            return said
    for found in raised:
        if isinstance(found, OmegaConfBaseException) and found.full_key:
            return _of_setting(found, config_class)
    return f"{' '.join(str(error).split()).rstrip('.')}."


def _of_hydra(error: Exception) -> bool:
    """True for an exception of Hydra or OmegaConf, and for a plain one that they raise (``--resolve`` alone)."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return isinstance(error, HydraException | OmegaConfBaseException) or module.startswith("hydra.")


def _of_setting(error: OmegaConfBaseException, config_class: type) -> str:
    """The sentence about ``error.full_key``."""
    name = str(error.full_key)
    kind = field_types(config_class).get(name.partition("[")[0])
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_setting(name, config_class, error.parent_node)
    if isinstance(error, InterpolationResolutionError):
        return f"{name} cannot be resolved: {_first_line(error)}."
    if isinstance(error, MissingMandatoryValue):
        return f"{name} must have a value, got none; set it, {name}=<value>."
    if isinstance(error, ValidationError) and kind is not None:
        return type_error(name, kind, error.value)
    return f"{name}: {_first_line(error)}."


def type_error(name: str, kind: Any, value: Any) -> str:
    """``algo.gamma must be a number, got 'abc'.``"""
    if value is None:
        return f"{name} must have a value, got null."
    if dataclasses.is_dataclass(kind):
        return f"{name} is a group of settings; set one of them, {name}.<name>=<value>."
    kinds = [each for each in _alternatives(kind) if each is not types.NoneType]
    if typing.get_origin(kinds[0]) is list:
        if not name.endswith("]"):
            return f"{name} must be a list, written [a,b]."
        kinds = list(typing.get_args(kinds[0]))
    expected = [_EXPECTED.get(typing.get_origin(each) or each, str(each)) for each in kinds]
    return f"{name} must be {' or '.join(expected)}, got {value!r}."


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """``(int, NoneType)`` of ``int | None``."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def unknown_setting(name: str, config_class: type, beside: Any = None) -> str:
    """``algo.taau is not a setting; did you mean algo.tau?``; ``beside`` are the settings that stand where it would."""
    known, (above, _, last) = field_types(config_class), name.rpartition(".")
    if above and not dataclasses.is_dataclass(known.get(above)):  # of a class, which may take it none the less
        near = difflib.get_close_matches(last, map(str, beside or ()), n=1)
        return f"{name} is not set here; " + (f"did you mean {above}.{near[0]}?" if near else f"+{name}=... adds it.")
    by_end = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    end = difflib.get_close_matches(last, by_end, n=1, cutoff=0.75)
    guess = close[0] if close else by_end[end[0]] if end else None
    return f"{name} is not a setting{f'; did you mean {guess}?' if guess else '; --cfg job lists all settings.'}"


def _unknown_choice(conf: Path, wanted: str, beside: Sequence[str]) -> str:
    """The sentence for ``group/choice`` that Hydra does not find; ``beside`` are the files it found in its folder."""
    group, _, choice = wanted.partition("/")
    known = options(conf, group)
    if not known:  # not a group of the recipe
        group, _, choice = wanted.rpartition("/")
        known = sorted(map(str, beside))
    near = difflib.get_close_matches(choice, known, n=1)
    if group == "env" and re.fullmatch(r"[\w./-]+-v\d+", choice):  # a gymnasium id, as envs.settings.gym_words has it
        near = [f"env=gym env.game={choice}"]
    hint = f" (did you mean {near[0]}?)" if near else ""
    if group == "hydra/launcher" and known == ["basic"]:
        hint = " (others come with the package hydra-submitit-launcher)"
    if not known:
        return f"{group}={choice} is not known: there is no {group}/{choice}.yaml."
    return f"{group}={choice} is not known; choose one of {', '.join(known)}{hint}."


def _first_line(error: BaseException) -> str:
    """The first line of its message, without a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".")
