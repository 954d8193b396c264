"""The words of a command line: as people write them, as Hydra reads them, and as they name a run's folder."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchrl_reg.folder_names import folder_name

# Overrides that do not belong in the default folder's name: they are in it already, or change only what is shown.
_UNNAMED = (
    *("run.dir", "run.seed", "run.seeds", "run.loggers", "run.progress", "run.on_nan", "run.device", "run.threads"),
    *("run.video_every_frames", "env"),
)
_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def readable(words: Sequence[str], config_class: type) -> list[str]:
    """``words`` as Hydra can read them: a path with ``=`` quoted, ``1e6`` written out where an integer is wanted.

    What a part of the config without a schema has yet to hold needs no ``+``: its class says what it takes.

    >>> from torchrl_reg.training import RecipeConfig
    >>> readable(["run.dir=results/dqn/seed=0", "run.log_every_frames=1e3", "-m"], RecipeConfig)
    ["run.dir='results/dqn/seed=0'", 'run.log_every_frames=1000', '-m']
    """
    integers = _settings_of(int, config_class)
    hints = typing.get_type_hints(config_class)
    free = tuple(f"{item.name}." for item in dataclasses.fields(config_class) if is_free(hints[item.name]))
    sweeping = bool({"-m", "--multirun"} & set(words))
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        setting = name.lstrip("+")
        if setting == "run.dir" and _wants_quotes(value, sweeping):
            value = "'" + value.replace("'", "\\'") + "'"
        elif setting in integers:
            value = re.sub(rf"(?<![\w.]){_NUMBER}(?![\w.])", lambda match: _as_integer(match[0]), value)
        found.append(f"{'++' if free and name.startswith(free) else ''}{name}{equals}{value}")
    return found


def is_free(kind: Any) -> bool:
    """Whether a field of this type is a part of the config without a schema."""
    return typing.get_origin(kind) is dict


def _wants_quotes(value: str, sweeping: bool) -> bool:
    if not value or value == "null" or value[0] in "'\"" or "${" in value or "\\" in value:  # Hydra's own language
        return False
    if sweeping and "," in value and "=" not in value:
        return False
    return re.fullmatch(r"[A-Za-z0-9_./+-]+", value) is None


def _as_integer(text: str) -> str:
    try:
        number = Decimal(text.replace("_", ""))
    except InvalidOperation:
        return text
    whole = re.search(r"[.eE]", text) and number == number.to_integral_value() and number.adjusted() < 19
    return str(int(number)) if whole else text


def check_switches(words: Sequence[str], config_class: type, fail: Callable[[str], Any]) -> None:
    """Fails on ``algo.clip_rewards=3``, which OmegaConf takes for true."""
    switches = _settings_of(bool, config_class)
    for word in words:
        name, _, value = word.lstrip("+").partition("=")
        if name in switches and any(re.fullmatch(_NUMBER, v.strip()) and v not in "01" for v in value.split(",")):
            fail(f"{name} must be true or false, got {value}.")


def _settings_of(wanted: type, config_class: type, prefix: str = "") -> set[str]:
    """Dotted names of the settings that hold a ``wanted`` (int: no float), or lists of them."""
    hints, found = typing.get_type_hints(config_class), set[str]()
    for item in dataclasses.fields(config_class):
        kind, name = hints[item.name], f"{prefix}{item.name}"
        if dataclasses.is_dataclass(kind):
            found |= _settings_of(wanted, typing.cast(type, kind), f"{name}.")
        elif kind is wanted or wanted in typing.get_args(kind) and not _holds_floats(kind):
            found.add(name)
    return found


def _holds_floats(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and float in typing.get_args(kind)


def default_folder(name: str, env: str | None, overrides: Sequence[str], seed: int) -> Path:
    """``results/<name>/<env>/<overrides or "default">/seed=<seed>``: the path tells the settings.

    >>> str(default_folder("m_dqn", "acrobot", ["env=acrobot", "algo.tau=0.1", "run.seed=3"], 3))
    'results/m_dqn/acrobot/algo.tau=0.1/seed=3'
    """
    named = sorted(text.lstrip("+~") for text in overrides if is_named(text))
    settings = folder_name(",".join(named)) or "default"
    return Path("results") / name / re.sub(r"[^\w.-]+", "-", env or "none") / settings / f"seed={seed}"


def is_named(override: str) -> bool:
    """Whether ``override`` belongs in the name of the default folder."""
    key = override.lstrip("+~").partition("=")[0]
    return key not in _UNNAMED and not key.startswith("hydra")


def telling(overrides: Sequence[str], config: DictConfig, compose: Callable[[Sequence[str]], DictConfig]) -> list[str]:
    """Of ``overrides`` those that make ``config`` what it is, values written in one way, so that one run has one name.

    Args:
        overrides: the command line's.
        config: what they compose to.
        compose: composes other lists of them.
    """
    expected, kept = _settings(config), list(overrides)
    for override in [each for each in overrides if is_named(each)]:
        without = [each for each in kept if each is not override]
        if _settings(compose(without)) == expected:
            kept = without
    return [_written(override, config) for override in kept]


def _settings(config: DictConfig) -> Any:
    found = OmegaConf.to_container(config, resolve=False)
    assert isinstance(found, dict)
    return {**found, "run": {**found["run"], "dir": None, "seed": None, "seeds": None}}


def _written(override: str, config: DictConfig) -> str:
    """``algo.tau=0.10`` as ``algo.tau=0.1``; a group's choice as it is."""
    key = override.lstrip("+~").partition("=")[0]
    value = OmegaConf.select(config, key)
    if "." not in key or value is None or OmegaConf.is_config(value):
        return override
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
