"""Overrides of a command line: quoted for Hydra, and in the name of a run's default folder."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # how it splits a sweep has no public form
from hydra._internal.utils import get_args_parser  # Hydra's options have no public list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from torchrl_reg.lab.cli.groups import field_types
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import folder_name
from torchrl_reg.lab.run.settings import WITHOUT_EFFECT

# Overrides left out of the default folder's name; seed and environment are in its path already.
_UNNAMED = WITHOUT_EFFECT | {"run.seed", "env"}


def quoted_overrides(words: Iterable[str], config_class: type) -> list[str]:
    """``words`` in Hydra's grammar: a ``run.dir`` that contains ``=`` quoted, ``1e6`` of an integer setting as digits.

    Raises:
        UserError: a preset comes without a method.

    >>> from torchrl_reg.lab import RecipeConfig
    >>> quoted_overrides(["run.dir=results/dqn/seed=0", "run.log_every_frames=1e4", "-m"], RecipeConfig)
    ["run.dir='results/dqn/seed=0'", 'run.log_every_frames=10000', '-m']
    """
    words, kinds = list(words), field_types(config_class)
    sweeping = bool({"-m", "--multirun"} & set(words))
    found = []
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("+") == "run.dir":
            word = quoted(word, sweeping)
        elif _is_integer(kinds.get(name)):
            word = f"{name}={re.sub(_NUMBER, _as_integer, value)}"
        found.append(word)
    _check_preset(words, config_class)
    return found


def options_first(words: Sequence[str]) -> list[str]:
    """``words`` with Hydra's options before the overrides: between them, argparse refuses what follows.

    Raises:
        UserError: an option that does not exist or lacks its value; argparse would print its usage.

    >>> options_first(["algo.tau=0.1", "-m", "run.seed=0,1"])
    ['-m', 'algo.tau=0.1', 'run.seed=0,1']
    """

    def refuse(message: str) -> typing.NoReturn:
        raise UserError(f"{message}.")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    found, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        raise UserError(f"{word} is not an option; settings are written name=value, without dashes.")
    overrides = list(found.overrides)
    return [word for word in words if word not in overrides] + overrides


def runs_of_sweep(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of a multirun by Hydra's own sweeper; none if only Hydra can tell them.

    So with another sweeper, ``glob(*)``, or groups and a config from elsewhere.

    >>> runs_of_sweep(["-m", "algo.tau=0.1,1", "run.seed=3"])
    [['algo.tau=0.1', 'run.seed=3'], ['algo.tau=1', 'run.seed=3']]
    """
    chosen = get_args_parser().parse_args(list(words))
    elsewhere = chosen.config_dir or chosen.config_name or chosen.config_path
    names = [word.lstrip("+~") for word in chosen.overrides]
    if not chosen.multirun or elsewhere or any(n.startswith(("hydra/sweeper", "hydra.searchpath")) for n in names):
        return []
    own = [word for word, name in zip(chosen.overrides, names, strict=True) if not name.startswith("hydra")]
    overrides = OverridesParser.create().parse_overrides(own)
    if any(isinstance(override.value(), Glob) for override in overrides):
        return []
    (runs,) = BasicSweeper.split_arguments(overrides, None)
    return runs


def _check_preset(words: Iterable[str], config_class: Any) -> None:
    """Raises ``UserError`` for a ``paper`` preset without a choice of the method that it needs."""
    chosen, needed = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in words}, config_class.paper_needs
    if "paper" in chosen and needed and chosen.isdisjoint(needed):
        method, *slots = needed
        paper = next(word for word in words if word.lstrip("+").startswith("paper="))
        expected = f"must come with +{method}=<choice>, which its file names, or a choice of {', '.join(slots)}"
        raise UserError(f"{paper} {expected}, got none.")


_NUMBER = r"(?<![\w.])\d+(?:\.\d*)?(?:[eE]\+?\d+)?(?![\w.])"


def _is_integer(kind: Any) -> bool:
    """True for ``int``, ``int | None``, ``list[int]``."""
    kinds = typing.get_args(kind) or (kind,)
    return int in kinds and all(kind in (int, types.NoneType) for kind in kinds)


def _as_integer(number: re.Match[str]) -> str:
    """``1000000`` for ``1e6``, ``2`` for ``2.0``; any other number unchanged."""
    text = number[0]
    value = float(text)
    return str(int(value)) if not text.isdecimal() and value.is_integer() and value < 1e19 else text


def quoted(word: str, sweeping: bool = False) -> str:
    """A ``name=value`` whose value may hold any character, in Hydra's grammar.

    >>> quoted("run.dir=a=b"), quoted("root=é 1"), quoted("root=results")
    ("run.dir='a=b'", "root='é 1'", 'root=results')
    """
    name, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"" or "\\" in value:  # in Hydra's grammar
        return word
    if "${" in value and "=" not in value:
        return word
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", value) or (sweeping and "," in value and "=" not in value):
        return word
    return name + "='" + value.replace("'", "\\'") + "'"


def default_folder(name: str, env: str | None, overrides: Sequence[str], seed: int) -> Path:
    """``results/<name>/<env>/<overrides or "default">/seed=<seed>``.

    >>> str(default_folder("m_dqn", "acrobot", ["env=acrobot", "algo.tau=0.1", "run.seed=3"], 3))
    'results/m_dqn/acrobot/algo.tau=0.1/seed=3'
    """
    named = sorted(text.lstrip("+~") for text in overrides if _is_named(text))
    settings = folder_name(",".join(named)) or "default"
    return Path("results") / name / re.sub(r"[^\w.-]+", "-", env or "none") / settings / f"seed={seed}"


def _is_named(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key not in _UNNAMED and not key.startswith("hydra")


def effective_overrides(overrides: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> list[str]:
    """The overrides that change the config, in canonical form: equal configs get equal folder names.

    Args:
        overrides: those of the command line.
        compose: function from overrides to settings.
    """
    settings, effective = compose(overrides), list(overrides)
    for override in filter(_is_named, overrides):
        without = [other for other in effective if other is not override]
        if _comparable(compose(without)) == _comparable(settings):
            effective = without
    return [_canonical(override, settings) for override in effective]


def _comparable(settings: DictConfig) -> dict[str, Any]:
    """The settings without folder and seeds."""
    resolved: Any = OmegaConf.to_container(settings, resolve=True)
    return {**resolved, "run": {**resolved["run"], "dir": None, "seed": None, "seeds": None}}


def _canonical(override: str, settings: DictConfig) -> str:
    """``algo.tau=0.1`` for ``algo.tau=0.10``; the choice of a group unchanged."""
    key = override.lstrip("+~").partition("=")[0]
    value = OmegaConf.select(settings, key) if "." in key else None
    if value is None or OmegaConf.is_config(value):
        return override
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
