"""One sentence for each error of Hydra, OmegaConf and YAML, written from the fields of the exception."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
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
from torchrl_reg.lab.errors import first_line, user_sentence

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a mapping"}


def sentence(error: Exception, words: Sequence[str], config_class: type, conf: Path) -> str | None:
    """The sentence for an ``error`` of Hydra's, of OmegaConf's or of a YAML file; None for anything else.

    Args:
        error: the exception raised.
        words: the command line.
        config_class: the recipe's.
        conf: folder of its config groups.
    """
    cause = error.__cause__ or error.__context__
    errors = [one for one in (error, cause) if one is not None]
    for one in errors:
        if isinstance(one, yaml.YAMLError):
            mark, problem = getattr(one, "problem_mark", None), getattr(one, "problem", None)
            place = f"{mark.name}, line {mark.line + 1}" if mark is not None else "A settings file"
            return f"{place} is not YAML: {problem or _first_line(one)}."
    if isinstance(error, MissingConfigException):
        return _unknown_choice(conf, str(error.missing_cfg_file or ""), error.options or ())
    if isinstance(error, OverrideParseException):
        word = error.override
        groups = [path.parent.name for path in conf.glob(f"*/{word}.yaml")] if word.isidentifier() else []
        return f"{word!r} is not of the form name=value{f'; did you mean {groups[0]}={word}?' if groups else '.'}"
    if isinstance(error, InstantiationException) and cause is not None:
        return user_sentence(cause) or str(cause if isinstance(cause, ImportError) else error)
    if not _is_from_hydra(error):
        return None
    for word in words:
        if message := unsupported_choice(conf, word, config_class):
            return message
        if message := _sweep_without_multirun(word, words):
            return message
    for one in errors:
        if isinstance(one, OmegaConfBaseException) and one.full_key:
            return _setting_error(one, config_class, conf)
    return f"{' '.join(str(error).split()).rstrip('.')}."


def _sweep_without_multirun(word: str, words: Sequence[str]) -> str | None:
    """``run.seed must be one value, got 0,1; -m runs each of them.``"""
    if word.startswith("-") or {"-m", "--multirun"} & set(words):
        return None
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return None
    return f"{override.key_or_group} must be one value, got {word.partition('=')[2]}; -m runs each of them."


def _is_from_hydra(error: Exception) -> bool:
    """True for exceptions of Hydra and OmegaConf, and for built-in ones that Hydra raises (``--resolve`` alone)."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return isinstance(error, HydraException | OmegaConfBaseException) or module.startswith("hydra.")


def _setting_error(error: OmegaConfBaseException, config_class: type, conf: Path) -> str:
    """The sentence for an error in the setting ``error.full_key``."""
    name = str(error.full_key)
    kind = field_types(config_class).get(name.partition("[")[0])
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_setting(name, config_class, error.parent_node, conf)
    if isinstance(error, InterpolationResolutionError):
        return f"{name} cannot be resolved: {_first_line(error)}."
    if isinstance(error, MissingMandatoryValue):
        return f"{name} must have a value, got none; set {name}=<value>."
    if isinstance(error, ValidationError) and kind is not None:
        return type_error(name, kind, error.value)
    return f"{name}: {_first_line(error)}."


def type_error(name: str, kind: Any, value: Any) -> str:
    """``algo.gamma must be a number, got 'abc'.``"""
    if value is None:
        return f"{name} must have a value, got null."
    if dataclasses.is_dataclass(kind):
        return f"{name} is a group of settings; set one of them, {name}.<name>=<value>."
    kinds = [option for option in _alternatives(kind) if option is not types.NoneType]
    if typing.get_origin(kinds[0]) is list:
        if not name.endswith("]"):
            return f"{name} must be a list, written [a,b]."
        kinds = list(typing.get_args(kinds[0]))
    expected = [_EXPECTED.get(typing.get_origin(option) or option, str(option)) for option in kinds]
    return f"{name} must be {' or '.join(expected)}, got {value!r}."


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """``(int, NoneType)`` of ``int | None``."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def unknown_setting(
    name: str, config_class: type, siblings: Iterable[object] | None = None, conf: Path | None = None
) -> str:
    """``algo.taau is not a setting; did you mean algo.tau?``; ``siblings`` are the settings of the same group.

    Of a group in ``conf`` the choices that have the setting are named.
    """
    known, (above, _, last) = field_types(config_class), name.rpartition(".")
    if above and not dataclasses.is_dataclass(known.get(above)):  # keys of a mapping are not declared
        files = sorted((conf / above).glob("*.yaml")) if conf is not None else []
        if having := [
            file.stem for file in files if re.search(rf"^{re.escape(last)}:", file.read_text(encoding="utf-8"), re.M)
        ]:
            return f"{name} is not a setting here, but of {' and '.join(f'{above}={each}' for each in having)}."
        near = difflib.get_close_matches(last, map(str, siblings or ()), n=1)
        return f"{name} is not set here; " + (f"did you mean {above}.{near[0]}?" if near else f"+{name}=... adds it.")
    by_end = {setting.rpartition(".")[2]: setting for setting in reversed(known)}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    end = difflib.get_close_matches(last, by_end, n=1, cutoff=0.75)
    guess = close[0] if close else by_end[end[0]] if end else None
    return f"{name} is not a setting{f'; did you mean {guess}?' if guess else '; --cfg job lists all settings.'}"


def with_setting(message: str, config_class: type) -> str:
    """Replaces the argument that a ``message`` of the library begins with by its setting, such as ``env.game``."""
    argument, _, rest = message.partition(" ")
    names = field_types(config_class)
    owner, _, last = argument.rpartition(".")
    found = [name for name in names if name.rpartition(".")[2] == last and "." in name]
    if owner:  # NetSettings.name
        found = [name for name in found if getattr(names[name.rpartition(".")[0]], "__name__", "") == owner]
    return f"{found[0]} {rest}" if len(found) == 1 else message


def _unknown_choice(conf: Path, missing: str, siblings: Sequence[str]) -> str:
    """The sentence for a missing ``group/choice``; ``siblings`` are the files that Hydra found in its folder."""
    group, _, choice = missing.partition("/")
    known = options(conf, group)
    if not known:  # not a group of the recipe
        group, _, choice = missing.rpartition("/")
        known = sorted(map(str, siblings))
    near = difflib.get_close_matches(choice, known, n=1)
    if group == "env" and re.fullmatch(r"[\w./-]+-v\d+", choice):  # a Gymnasium id
        near = [f"env=gym env.game={choice}"]
    hint = f" (did you mean {near[0]}?)" if near else ""
    if group == "hydra/launcher" and known == ["basic"]:
        hint = " (others come with the package hydra-submitit-launcher)"
    if not group:  # --config-name
        return f"--config-name must name a file in {conf}, got {choice}."
    if not known:
        return f"{group}={choice} is not known: there is no {group}/{choice}.yaml."
    return f"{group}={choice} is not known; choose one of {', '.join(known)}{hint}."


def _first_line(error: BaseException) -> str:
    """The first line of its message, without a full stop."""
    return first_line(error).rstrip(".")
