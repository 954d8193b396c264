"""``--help`` of a recipe, and the YAML files its groups choose from."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from torchrl_reg.lab.cli.field_comments import descriptions
from torchrl_reg.lab.cli.invocation import as_typed
from torchrl_reg.lab.cli.typed_config import dotted_names, learning_settings, unknown_names


def options(conf: Path, group: str) -> list[str]:
    """The choices of a group, which may lie deeper: ``minatar/breakout``."""
    return sorted(str(path.relative_to(conf / group).with_suffix("")) for path in (conf / group).rglob("*.yaml"))


def foreign_choice(conf: Path, group: str, choice: str, config_class: type) -> Iterator[str]:
    """The sentence for a choice of ``conf`` that is for other recipes; Hydra knows of other folders."""
    known = (conf / group / f"{choice}.yaml").exists()
    for name in foreign_settings(conf, group, choice, config_class) if known else ():
        refused = f"{group}={choice} does not go with this recipe"
        actions = {"policy": "continuous", "net": "discrete"}.get(name) if group == "env" else None
        if actions and (others := _recipes_with(name, conf)):
            yield f"{refused}: its actions are {actions}; recipes for those are {', '.join(others)}."
        yield f"{refused}: it sets {name}, which this recipe does not have."


def _recipes_with(name: str, conf: Path) -> list[str]:
    """The recipes beside ``conf`` whose config has the settings ``name``, by their source, as imports take seconds."""
    field = re.compile(rf"^    {name}: \w+Settings", re.MULTILINE)
    scripts = sorted(conf.parent.glob("*.py"))
    return [script.stem for script in scripts if field.search(script.read_text(encoding="utf-8"))]


def unknown_choice(conf: Path, wanted: str, beside: Iterable[str]) -> str:
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


def foreign_settings(conf: Path, group: str, choice: str, config_class: type) -> list[str]:
    """What a choice sets and ``config_class`` does not have, groups first; an environment may say more of learning."""
    expected = {*_groups(config_class), *(learning_settings() if group == "env" else ())}
    names = [name for name in _names_set(conf, group, choice) if name not in expected]
    return unknown_names(sorted(names, key=lambda name: "." in name), config_class)


def environments(path: Path) -> set[str]:
    """What a preset is for: the environment that it sets, and those its comments say to use it with (``env=atari``)."""
    text = path.read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    sets = re.findall(r"^env:\n  name: (\w+)", text, re.MULTILINE)
    return {*re.findall(r"\benv=([a-z]\w*)", comments), *sets}


def fitting(conf: Path, group: str, config_class: type, env: str | None = None) -> list[str]:
    """The choices of a group that this recipe accepts; what it starts from comes first.

    Presets, which a recipe starts without, are left out if they are for other environments than ``env``.
    """
    first, found = _groups(config_class).get(group), []
    for choice in options(conf, group):
        try:
            fits = not foreign_settings(conf, group, choice, config_class)
            # What sets the environment alone, and is no choice of one, belongs to recipes that start from it.
            only_env = {name.partition(".")[0] for name in _names_set(conf, group, choice)} == {"env"}
        except (yaml.YAMLError, OSError):
            continue
        meant = environments(conf / group / f"{choice}.yaml") if first is None and env else set()
        if fits and (first is not None or not only_env) and (not meant or env in meant):
            found.append(choice)
    return sorted(found, key=lambda choice: (choice != first, choice))


def groups_of(conf: Path, config_class: type) -> list[str]:
    """The recipe's groups, and those that only ``+group=choice`` reaches; not those whose files others start from."""
    folders = sorted(path.name for path in conf.iterdir() if path.is_dir()) if conf.is_dir() else []
    texts = [path.read_text(encoding="utf-8") for path in conf.rglob("*.yaml")]
    parts = {group for group in folders if any(f"- /{group}/" in text for text in texts)}
    own = list(_groups(config_class))
    return own + [group for group in folders if group not in parts and group not in own]


def _groups(config_class: type) -> Mapping[str, str]:
    return getattr(config_class, "groups", {})


def _names_set(conf: Path, group: str, choice: str) -> list[str]:
    """Dotted names of what a file sets, and of the groups it chooses; with those of the files it starts from."""
    path = conf / group / f"{choice}.yaml"
    with path.open(encoding="utf-8") as text:
        is_global = text.readline().startswith("# @package _global_")
        text.seek(0)
        node: Any = yaml.safe_load(text) or {}
    defaults = node.pop("defaults", [])
    found = list(dotted_names(node, "" if is_global else f"{group}."))
    for item in defaults:
        if isinstance(item, dict):
            found += [str(key).removeprefix("override ").lstrip("/") for key in item]
        elif item != "_self_":
            part, _, name = item.lstrip("/").partition("/") if item.startswith("/") else (group, "/", item)
            found += _names_set(conf, part, name)
    return found


_WIDTH, _COLUMN = 120, 44
# Descriptions of settings that a recipe need not comment on.
_PLAIN = {"learning_starts_frames": "frames before the first update"}
_FLAGS = """Other words:
  -m NAME=A,B          one run for each value (Hydra's multirun); +GROUP=CHOICE adds a choice that has no default
  --cfg job            prints the settings as they would be used, and runs nothing
  --check              reads JSON lists of settings from stdin and checks whether they can be run"""


def help_text(config_class: type, train: Callable[..., Any], conf: Path, config: DictConfig) -> str:
    """The text that ``--help`` prints.

    Args:
        config_class: the recipe's; comments behind its fields, or ``Args:`` of docstrings, describe the settings.
        train: a function of the recipe, whose module's docstring comes first.
        conf: where the groups' choices lie.
        config: the settings as the command line gives them, shown as defaults.
    """
    about = as_typed(inspect.getdoc(sys.modules[train.__module__]) or "")
    parts = [about, "Settings, written NAME=VALUE, with the values they would have now:"]
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if isinstance(node := config.get(item.name), DictConfig):
            parts.append("\n".join([item.name, *_lines(hints[item.name], node, f"{item.name}.")]))
    env = OmegaConf.select(config, "env.name")
    if choices := list(_choices(config_class, conf, env)):
        those = f"; those written +GROUP=CHOICE are for env.name={env}" if env else ""
        parts.append("\n".join([f"Choices, written GROUP=CHOICE{those}:", *choices]))
    return "\n\n".join([*parts, _FLAGS])


def _lines(kind: Any, node: DictConfig, prefix: str) -> Iterator[str]:
    known = dataclasses.is_dataclass(kind)
    hints, said = (typing.get_type_hints(kind), descriptions(kind)) if known else ({}, {})
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig) and value:
            yield from _lines(hints.get(key), value, f"{prefix}{key}.")
            continue
        shown = f"  {prefix}{key}={_shown(value)}"
        described = textwrap.wrap(said.get(key, _PLAIN.get(key, "")), _WIDTH - _COLUMN) or [""]
        if described[0] and len(shown) >= _COLUMN - 1:
            yield shown
            shown = ""
        yield f"{shown:<{_COLUMN}}{described[0]}".rstrip()
        yield from (" " * _COLUMN + line for line in described[1:])


def _shown(value: Any) -> str:
    if OmegaConf.is_list(value):
        return "[" + ",".join(map(_shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else "''"


def _choices(config_class: type, conf: Path, env: str | None) -> Iterator[str]:
    """The choices of every group that this recipe accepts in ``env``; what a group starts from comes first."""
    defaults = getattr(config_class, "groups", {})
    for group in groups_of(conf, config_class):
        first, found = defaults.get(group), fitting(conf, group, config_class, env)
        wrapped = textwrap.wrap(", ".join(f"{n} (default)" if n == first else n for n in found), _WIDTH - 14)
        for index, line in enumerate(wrapped):
            yield f"  {'' if index else f'{chr(43) * (first is None)}{group}=':<12}{line}"
