"""The words of a command line: as people write them, as Hydra reads them, and as they name a run's folder."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from torchrl_reg.lab.cli.help import foreign_choice
from torchrl_reg.lab.cli.typed_config import converted, field_kinds, misfit, unknown_names, unknown_setting
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import folder_name

# Overrides that do not belong in the default folder's name: they are in it already, or change only what is shown.
_UNNAMED = (
    *("run.dir", "run.seed", "run.seeds", "run.loggers", "run.progress", "run.on_nan", "run.device", "run.threads"),
    *("run.video_every_frames", "env"),
)
# Hydra's options.
_FLAGS = (["--help", "-h"], ["--hydra-help"], ["--version"], ["--resolve"], ["--run", "-r"], ["--multirun", "-m"])
_OPTIONS = (["--package", "-p"], ["--config-path", "-cp"], ["--config-name", "-cn"], ["--config-dir", "-cd"])
# A temperature by the loss it may cost: = and < are Hydra's own language.
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def read_words(words: Sequence[str], config_class: type, conf: Path) -> argparse.Namespace:
    """Hydra's options, and ``overrides``, which are all other words, unless Hydra would misread or refuse them.

    Raises:
        UserError: for ``--tau=1``, ``~env``, ``algo.taau=1``, ``-m algo.lr=1,x`` and the like.
    """
    asked, rest = _Options().parse_known_args(words)
    asked.overrides = rest
    for sentence in chain(
        _of_options(asked), _of_overrides(asked, config_class, conf), _of_preset(asked.overrides, config_class)
    ):
        raise UserError(sentence)
    return asked


class _Options(argparse.ArgumentParser):
    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for names in (*_FLAGS, ["--shell-completion", "-sc"]):
            self.add_argument(*names, action="store_true")
        for names in (*_OPTIONS, ["--experimental-rerun"]):
            self.add_argument(*names)
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        self.add_argument("--info", "-i", nargs="?", const="all", choices=_INFO)

    def error(self, message: str) -> NoReturn:
        raise UserError(message + ".")


def readable(words: Sequence[str], config_class: type) -> list[str]:
    """``words`` as Hydra can read them: a path with ``=`` is quoted.

    What a part of the config without a schema has yet to hold needs no ``+``: its class says what it takes.

    >>> from torchrl_reg.lab import RecipeConfig
    >>> readable(["run.dir=results/dqn/seed=0", "algo.tau=0.1", "-m"], RecipeConfig)
    ["run.dir='results/dqn/seed=0'", 'algo.tau=0.1', '-m']
    """
    sweeping = bool({"-m", "--multirun"} & set(words))
    kinds = field_kinds(config_class)
    free = tuple(f"{name}." for name, kind in kinds.items() if typing.get_origin(kind) is dict)
    words = [f"++{word}" if free and word.startswith(free) else word for word in words]
    return [_quoted(word, sweeping) if word.lstrip("+").startswith("run.dir=") else word for word in words]


def _quoted(word: str, sweeping: bool) -> str:
    name, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"" or "${" in value or "\\" in value:  # Hydra's own language
        return word
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", value) or (sweeping and "," in value and "=" not in value):
        return word
    return name + "='" + value.replace("'", "\\'") + "'"


def _of_options(asked: argparse.Namespace) -> Iterator[str]:
    for word in asked.overrides:
        if word.startswith("-"):
            yield f"{word} is not an option; settings are written name=value, without dashes."
    if asked.resolve and not (asked.cfg or asked.help):
        yield "--resolve must go with --cfg job, which prints the settings, got it alone."
    if sum(map(bool, (asked.run, asked.multirun, asked.cfg, asked.info, asked.shell_completion))) > 1:
        flags = "--run, --multirun, --cfg, --info and --shell-completion"
        yield f"{flags} must be asked for one at a time, got several."


def _of_overrides(asked: argparse.Namespace, config_class: type, conf: Path) -> Iterator[str]:
    sweeping = asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    for word in asked.overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except OverrideParseException:
            groups = [path.parent.name for path in conf.glob(f"*/{word}.yaml")] if "/" not in word else []
            yield f"{word!r} is not of the form name=value" + (f"; did you mean {groups[0]}={word}?" if groups else ".")
            return
        if not override.is_hydra_override():
            yield from _of_override(override, word, config_class, conf)
            if override.is_sweep_override() and not sweeping:
                yield f"Ambiguous value for argument {word!r}; to sweep over it add -m, to pass a list write [a,b]."


def _of_override(override: Override, word: str, config_class: type, conf: Path) -> Iterator[str]:
    name, text, kinds = override.key_or_group, word.partition("=")[2], field_kinds(config_class)
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
    if not name:
        yield f"{word!r} is not of the form name=value."
    elif override.is_delete():
        yield f"{word} would remove {name}, which this recipe needs; set it instead, {name}=<value>."
    elif (conf / name).is_dir():
        if not override.is_add() and name not in getattr(config_class, "groups", {}):
            yield f"{name} has no default choice; to add one write +{name}=<choice>."
        for choice in map(str, values or [text]):
            yield from foreign_choice(conf, name, choice, config_class)
    elif unknown_names([name], config_class):
        yield unknown_setting(name, config_class)
    elif name in kinds and "${" not in text:
        for value in values:  # each, before the first is run
            try:
                converted(getattr(value, "text", value), kinds[name], name)
            except UserError:
                yield misfit(name, (kinds[name],), text)


def _of_preset(overrides: Sequence[str], config_class: type) -> Iterator[str]:
    """For a preset of methods, given without one."""
    chosen = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in overrides}
    needed = getattr(config_class, "paper_needs", ())
    if "paper" in chosen and needed and chosen.isdisjoint(needed):
        method, *slots = needed
        paper = next(word for word in overrides if word.lstrip("+").startswith("paper="))
        slots = ", ".join(slots)
        yield f"{paper} must come with +{method}=<choice>, which its file names, or a choice of {slots}, got none."


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
    value = reduce(lambda node, part: node.get(part) if isinstance(node, dict) else None, key.split("."), settings)
    if "." not in key or value is None or isinstance(value, dict | list):
        return override
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
