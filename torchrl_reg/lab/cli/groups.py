"""The YAML files of a recipe's ``conf/``: which of a group's choices go with which recipe."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml


def options(conf: Path, group: str) -> list[str]:
    """The choices of a group, which may lie deeper: ``minatar/breakout``."""
    return sorted(str(path.relative_to(conf / group).with_suffix("")) for path in (conf / group).rglob("*.yaml"))


def first_choices(config_class: Any) -> dict[str, str]:
    """The groups that a recipe's defaults list names, and the choice it starts with in each."""
    entries = [entry for entry in config_class.defaults if isinstance(entry, dict)]
    return {group: choice for entry in entries for group, choice in entry.items() if " " not in group}


def unsupported_choice(conf: Path, word: str, config_class: type) -> str | None:
    """The sentence for ``group=choice`` of ``conf`` that is for other recipes; None for any other word."""
    group, _, choices = word.lstrip("+").partition("=")
    for choice in choices.split(",") if (conf / group).is_dir() else ():
        if not (conf / group / f"{choice}.yaml").exists():
            continue
        if name := _unsupported_setting(_names_set(conf, group, choice), config_class):
            refused = f"{group}={choice} does not go with this recipe"
            actions = {"policy": "continuous", "net": "discrete"}.get(name) if group == "env" else None
            if actions and (others := _recipes_with(name, conf)):
                return f"{refused}: its actions are {actions}; recipes for those are {', '.join(others)}."
            return f"{refused}: it sets {name}, which this recipe does not have."
    return None


def _unsupported_setting(names: Iterable[str], config_class: type) -> str | None:
    """The one of ``names``, those of groups first, that the recipe does not have; None if it has them all."""
    known, chosen = field_types(config_class), set().union(*_entries(config_class))
    by_depth = sorted(names, key=lambda name: "." in name)
    return next((name for name in by_depth if name not in chosen and not _is_known(name, known)), None)


def _is_known(name: str, known: dict[str, Any]) -> bool:
    """Below a mapping or an object's settings all names are possible."""
    above = name.rpartition(".")[0]
    return name in known or (bool(above) and not dataclasses.is_dataclass(known.get(above)) and _is_known(above, known))


def _entries(config_class: Any) -> list[set[str]]:
    """The words of each entry of the defaults list: ``{"optional", "tuned"}``."""
    return [set(" ".join(entry).split()) for entry in config_class.defaults if isinstance(entry, dict)]


def _names_set(conf: Path, group: str, choice: str) -> list[str]:
    """Dotted names of what a file sets, and of the groups it chooses; with those of the files it starts from."""
    text = (conf / group / f"{choice}.yaml").read_text(encoding="utf-8")
    node: Any = yaml.safe_load(text) or {}
    defaults = node.pop("defaults", [])
    found = list(_dotted(node, "" if text.startswith("# @package _global_") else f"{group}."))
    for item in defaults:
        if isinstance(item, dict):
            found += [str(key).removeprefix("override ").lstrip("/") for key in item]
        elif item != "_self_":
            start, _, name = item.lstrip("/").partition("/") if item.startswith("/") else (group, "/", item)
            found += _names_set(conf, start, name)
    return found


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    """``"algo", "algo.tau", ...`` of nested mappings."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")


@cache
def field_types(config_class: type, prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names, groups of them included, with their types."""
    hints, found = typing.get_type_hints(config_class), dict[str, Any]()
    for item in dataclasses.fields(config_class):
        name, kind = f"{prefix}{item.name}", hints[item.name]
        found[name] = kind
        if dataclasses.is_dataclass(kind):
            found |= field_types(typing.cast(type, kind), f"{name}.")
    return found


def _recipes_with(name: str, conf: Path) -> list[str]:
    """The recipes beside ``conf`` whose config has the settings ``name``, by their source, as imports take seconds."""
    field = re.compile(rf"^    {name}: \w+Settings", re.MULTILINE)
    scripts = sorted(conf.parent.glob("*.py"))
    return [script.stem for script in scripts if field.search(script.read_text(encoding="utf-8"))]


def environments(path: Path) -> set[str]:
    """What a preset is for: the environment that it sets, and those its comments say to use it with (``env=atari``)."""
    text = path.read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    sets = re.findall(r"^env:\n  name: (\w+)", text, re.MULTILINE)
    return {*re.findall(r"\benv=([a-z]\w*)", comments), *sets}


def supported_choices(conf: Path, config_class: type, env: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each group with the choices that this recipe accepts, those that it starts with first.

    Presets, which a recipe starts without, are left out if they are for other environments than ``env``.
    """
    first = first_choices(config_class)
    folders = sorted(path.name for path in conf.iterdir() if path.is_dir()) if conf.is_dir() else []
    texts = [path.read_text(encoding="utf-8") for path in conf.rglob("*.yaml")]
    named = set().union(*_entries(config_class))
    # Not those whose files others start from, nor what the environment's name chooses.
    parts = {group for group in folders if group in named or any(f"- /{group}/" in text for text in texts)}
    for group in [*first, *(group for group in folders if group not in parts)]:
        found = []
        for choice in options(conf, group):
            try:
                names = _names_set(conf, group, choice)
            except (yaml.YAMLError, OSError):
                continue
            fits = _unsupported_setting(names, config_class) is None
            # What sets the environment alone, and is no choice of one, belongs to recipes that start from it.
            only_env = {name.partition(".")[0] for name in names} == {"env"}
            meant = environments(conf / group / f"{choice}.yaml") if group not in first and env else set()
            if fits and (group in first or not only_env) and (not meant or env in meant):
                found.append(choice)
        yield group, sorted(found, key=lambda choice: (choice != first.get(group), choice))
