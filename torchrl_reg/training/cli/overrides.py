"""The words of a command line: as people write them, as Hydra reads them, and as they name a run's folder."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from torchrl_reg.folder_names import folder_name
from torchrl_reg.training.cli.config_errors import field_kinds, foreign, leaf_types, unknown_setting, yaml_groups
from torchrl_reg.training.errors import ConfigError

# Overrides that do not belong in the default folder's name: they are in it already, or change only what is shown.
_UNNAMED = (
    *("run.dir", "run.seed", "run.seeds", "run.loggers", "run.progress", "run.on_nan", "run.device", "run.threads"),
    *("run.video_every_frames", "env"),
)


def readable(words: Sequence[str], config_class: type) -> list[str]:
    """``words`` as Hydra can read them: a path with ``=`` is quoted.

    What a part of the config without a schema has yet to hold needs no ``+``: its class says what it takes.

    >>> from torchrl_reg.training import RecipeConfig
    >>> readable(["run.dir=results/dqn/seed=0", "algo.tau=0.1", "-m"], RecipeConfig)
    ["run.dir='results/dqn/seed=0'", 'algo.tau=0.1', '-m']
    """
    sweeping = bool({"-m", "--multirun"} & set(words))
    free = tuple(f"{name}." for name, kind in field_kinds(config_class).items() if is_free(kind))
    words = [f"++{word}" if free and word.startswith(free) else word for word in words]
    return [_quoted(word, sweeping) if word.lstrip("+").startswith("run.dir=") else word for word in words]


def is_free(kind: Any) -> bool:
    """Whether a field of this type is a part of the config without a schema."""
    return typing.get_origin(kind) is dict


def _quoted(word: str, sweeping: bool) -> str:
    name, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"" or "${" in value or "\\" in value:  # Hydra's own language
        return word
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", value) or (sweeping and "," in value and "=" not in value):
        return word
    return name + "='" + value.replace("'", "\\'") + "'"


def check_words(arguments: Sequence[str], config_class: type, conf: Path) -> list[str]:
    """The overrides among ``arguments``, unless Hydra would misread them, or refuse them over several lines.

    Raises:
        ConfigError: for ``--tau=1``, ``~env``, ``algo.taau=1``, ``algo.clip_rewards=3`` and the like.
        OverrideParseException: a word is not of the form ``name=value``.
    """
    for sentence in _problems(arguments, config_class, conf):
        raise ConfigError(sentence)
    return get_args_parser().parse_args(arguments).overrides


def _problems(arguments: Sequence[str], config_class: type, conf: Path) -> Iterator[str]:
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    asked, unknown = parser.parse_known_args(arguments)
    for flag in unknown:
        yield f"{flag} is not an option; settings are written name=value, without dashes."
    if asked.resolve and not (asked.cfg or asked.help):
        yield "--resolve must go with --cfg job, which prints the settings, got it alone."
    if sum(map(bool, (asked.run, asked.multirun, asked.cfg, asked.info, asked.shell_completion))) > 1:
        flags = "--run, --multirun, --cfg, --info and --shell-completion"
        yield f"{flags} must be asked for one at a time, got several."
    kinds, sweeps = field_kinds(config_class), asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    for override in OverridesParser.create().parse_overrides(asked.overrides):
        if not override.is_hydra_override():
            yield from _of_name(override, config_class, kinds, conf)
            yield from _of_value(override, kinds, sweeps)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message + ".")


def _of_name(override: Override, config_class: type, kinds: Mapping[str, Any], conf: Path) -> Iterator[str]:
    name, word = override.key_or_group, str(override.input_line)
    if not name:
        yield f"{word!r} is not of the form name=value."
    elif override.is_delete():
        yield f"{word} would remove {name}, which this recipe needs; set it instead, {name}=<value>."
    elif (conf / name).is_dir():
        groups = getattr(config_class, "groups", {})
        if not override.is_add() and name not in groups:
            yield f"{name} has no default choice; to add one write +{name}=<choice>."
        choice = word.partition("=")[2]
        if (path := conf / name / f"{choice}.yaml").exists():
            yield from (foreign(name, choice, group) for group in sorted(yaml_groups(path) - groups.keys()))
    elif name not in kinds:
        above = name.rpartition(".")[0]
        while above and above not in kinds:
            above = above.rpartition(".")[0]
        if not above or dataclasses.is_dataclass(kinds[above]):  # below a list or a mapping all names are possible
            yield unknown_setting(name, config_class)


def _of_value(override: Override, kinds: Mapping[str, Any], sweeps: bool) -> Iterator[str]:
    name, word = override.key_or_group, str(override.input_line)
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v not in (0, 1)]
    if numbers and bool in leaf_types(kinds.get(name)):  # OmegaConf takes them for true
        yield f"{name} must be true or false, got {word.partition('=')[2]}."
    if override.is_sweep_override() and not sweeps:
        yield f"Ambiguous value for argument {word!r}; to sweep over it add -m, to pass a list write [a,b]."


def choices(words: Sequence[str], groups: Mapping[str, str]) -> dict[str, str]:
    """The choice of each config group."""
    named = [word.lstrip("+").partition("=") for word in words]
    return {**groups, **{name: value for name, _, value in named if "." not in name}}


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


def telling(overrides: Sequence[str], compose: Callable[[Sequence[str]], dict[str, Any]]) -> list[str]:
    """The overrides that change the config, in canonical form, so that one run has one name.

    Args:
        overrides: the command line's.
        compose: nested settings from lists of them.
    """
    settings, kept = compose(overrides), list(overrides)
    for override in filter(_is_named, overrides):
        without = [each for each in kept if each is not override]
        if _compared(compose(without)) == _compared(settings):
            kept = without
    return [_written(override, settings) for override in kept]


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "run": {**settings["run"], "dir": None, "seed": None, "seeds": None}}


def _written(override: str, settings: Any) -> str:
    """``algo.tau=0.10`` as ``algo.tau=0.1``; a group's choice as it is."""
    key = override.lstrip("+~").partition("=")[0]
    value = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if "." not in key or value is None or isinstance(value, dict | list):
        return override
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
