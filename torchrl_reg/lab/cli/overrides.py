"""The words of a command line: as people write them, as Hydra reads them, and as they name a run's folder."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchrl_reg.lab.cli.groups import field_types
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import folder_name

# Overrides that do not belong in the default folder's name: they are in it already, or change only what is shown.
_UNNAMED = (
    *("run.dir", "run.seed", "run.seeds", "run.loggers", "run.progress", "run.on_nan", "run.device", "run.threads"),
    *("run.video_every_frames", "env"),
)
# Hydra's options that have a value.
_OPTIONS = ("cfg", "package", "config-path", "config-name", "config-dir", "info", "experimental-rerun")


def as_hydra_reads(words: Iterable[str], config_class: type) -> list[str]:
    """``words`` in Hydra's grammar: a path with ``=`` is quoted, and an integer may be written ``1e6``.

    Raises:
        UserError: for ``--tau=1``, as other command lines are written, and a preset without its method.

    >>> from torchrl_reg.lab import RecipeConfig
    >>> as_hydra_reads(["run.dir=results/dqn/seed=0", "run.log_every_frames=1e4", "-m"], RecipeConfig)
    ["run.dir='results/dqn/seed=0'", 'run.log_every_frames=10000', '-m']
    """
    words, kinds = list(words), field_types(config_class)
    sweeping = bool({"-m", "--multirun"} & set(words))
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") and equals and name.lstrip("-") not in _OPTIONS:
            raise UserError(f"{word} is not an option; settings are written name=value, without dashes.")
        if name == "run.dir":
            word = _quoted(word, sweeping)
        elif _is_whole(kinds.get(name)):
            word = f"{name}={re.sub(_NUMBER, _whole, value)}"
        found.append(word)
    _check_preset(words, config_class)
    return found


def _check_preset(words: Iterable[str], config_class: Any) -> None:
    """Refuses a preset of methods without one of them."""
    chosen, needed = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in words}, config_class.paper_needs
    if "paper" in chosen and needed and chosen.isdisjoint(needed):
        method, *slots = needed
        paper = next(word for word in words if word.lstrip("+").startswith("paper="))
        file_names = f"{paper} must come with +{method}=<choice>, which its file names"
        raise UserError(f"{file_names}, or a choice of {', '.join(slots)}, got none.")


_NUMBER = r"(?<![\w.])\d+(?:\.\d*)?(?:[eE]\+?\d+)?(?![\w.])"


def _is_whole(kind: Any) -> bool:
    """True for ``int``, ``int | None``, ``list[int]``."""
    kinds = typing.get_args(kind) or (kind,)
    return int in kinds and all(each in (int, types.NoneType) for each in kinds)


def _whole(number: re.Match[str]) -> str:
    """``1e6`` and ``2.0`` as ``1000000`` and ``2``; anything else as it is."""
    text = number[0]
    value = float(text)
    return str(int(value)) if not text.isdecimal() and value.is_integer() and value < 1e19 else text


def _quoted(word: str, sweeping: bool) -> str:
    name, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"" or "${" in value or "\\" in value:  # Hydra's own language
        return word
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", value) or (sweeping and "," in value and "=" not in value):
        return word
    return name + "='" + value.replace("'", "\\'") + "'"


def default_folder(name: str, env: str | None, overrides: Sequence[str], seed: int) -> Path:
    """``results/<name>/<env>/<overrides or "default">/seed=<seed>``: the path tells the settings.

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
    """The overrides that change the config, in canonical form, so that one run has one name.

    Args:
        overrides: the command line's.
        compose: settings from lists of them.
    """
    settings, kept = compose(overrides), list(overrides)
    for override in filter(_is_named, overrides):
        without = [each for each in kept if each is not override]
        if _compared(compose(without)) == _compared(settings):
            kept = without
    return [_canonical(override, settings) for override in kept]


def _compared(settings: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    return {**plain, "run": {**plain["run"], "dir": None, "seed": None, "seeds": None}}


def _canonical(override: str, settings: DictConfig) -> str:
    """``algo.tau=0.10`` as ``algo.tau=0.1``; a group's choice as it is."""
    key = override.lstrip("+~").partition("=")[0]
    value = OmegaConf.select(settings, key) if "." in key else None
    if value is None or OmegaConf.is_config(value):
        return override
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
