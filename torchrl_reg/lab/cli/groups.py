"""Config groups in a recipe's ``conf/``, and the choices that a recipe supports."""

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
    """The choices of a group, with those in subfolders (``minatar/breakout``)."""
    return sorted(str(path.relative_to(conf / group).with_suffix("")) for path in (conf / group).rglob("*.yaml"))


def first_choices(config_class: Any) -> dict[str, str]:
    """Group -> default choice, from a recipe's defaults list."""
    entries = [entry for entry in config_class.defaults if isinstance(entry, dict)]
    return {group: choice for entry in entries for group, choice in entry.items() if " " not in group}


def unsupported_choice(conf: Path, word: str, config_class: type) -> str | None:
    """The error message for a ``group=choice`` of ``conf`` that this recipe does not support; None for other words."""
    group, _, choices = word.lstrip("+").partition("=")
    for choice in choices.split(",") if (conf / group).is_dir() else ():
        if not (conf / group / f"{choice}.yaml").exists():
            continue
        if name := _unsupported_setting(_names_set(conf, group, choice), config_class):
            problem = f"{group}={choice} does not go with this recipe"
            actions = {"policy": "continuous", "net": "discrete"}.get(name) if group == "env" else None
            if actions and (others := _recipes_with(name, conf)):
                return f"{problem}: its actions are {actions}; recipes for those are {', '.join(others)}."
            return f"{problem}: it sets {name}, which this recipe does not have."
    return None


def _unsupported_setting(names: Iterable[str], config_class: type) -> str | None:
    """The first of ``names``, groups before settings, that the recipe does not have; None if it has all."""
    known, chosen = field_types(config_class), set().union(*_entries(config_class))
    by_depth = sorted(names, key=lambda name: "." in name)
    return next((name for name in by_depth if name not in chosen and not _is_known(name, known)), None)


def _is_known(name: str, known: dict[str, Any]) -> bool:
    """True also for any name below a mapping, whose keys are not declared."""
    above = name.rpartition(".")[0]
    return name in known or (bool(above) and not dataclasses.is_dataclass(known.get(above)) and _is_known(above, known))


def _entries(config_class: Any) -> list[set[str]]:
    """The words in each key of the defaults list: ``{"optional", "tuned"}``."""
    return [set(" ".join(entry).split()) for entry in config_class.defaults if isinstance(entry, dict)]


def _names_set(conf: Path, group: str, choice: str) -> list[str]:
    """Dotted names of the settings and groups that a file and the files in its defaults list set."""
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
    """Dotted name -> type, of settings and groups of settings."""
    hints, found = typing.get_type_hints(config_class), dict[str, Any]()
    for item in dataclasses.fields(config_class):
        name, kind = f"{prefix}{item.name}", hints[item.name]
        found[name] = kind
        if dataclasses.is_dataclass(kind):
            found |= field_types(typing.cast(type, kind), f"{name}.")
    return found


def _recipes_with(name: str, conf: Path) -> list[str]:
    """The recipes beside ``conf`` with settings ``name``, found in the source: importing them takes seconds."""
    field = re.compile(rf"^    {name}: \w+Settings", re.MULTILINE)
    scripts = sorted(conf.parent.glob("*.py"))
    return [script.stem for script in scripts if field.search(script.read_text(encoding="utf-8"))]


def environments(path: Path) -> set[str]:
    """The environment that a preset sets, and those named in its comments (``env=atari``)."""
    text = path.read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    sets = re.findall(r"^env:\n  name: (\w+)", text, re.MULTILINE)
    return {*re.findall(r"\benv=([a-z]\w*)", comments), *sets}


def supported_choices(conf: Path, config_class: type, env: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each group with the choices that this recipe supports, the default one first.

    Presets (groups without a default) for environments other than ``env`` are left out.
    """
    first = first_choices(config_class)
    folders = sorted(path.name for path in conf.iterdir() if path.is_dir()) if conf.is_dir() else []
    texts = [path.read_text(encoding="utf-8") for path in conf.rglob("*.yaml")]
    named = set().union(*_entries(config_class))
    # Not for users: groups that other files include, and groups chosen by the environment's name.
    internal = {group for group in folders if group in named or any(f"- /{group}/" in text for text in texts)}
    for group in [*first, *(group for group in folders if group not in internal)]:
        found = []
        for choice in options(conf, group):
            try:
                names = _names_set(conf, group, choice)
            except (yaml.YAMLError, OSError):
                continue
            supported = _unsupported_setting(names, config_class) is None
            # A preset of the environment alone belongs to the recipes that have it as a default.
            only_env = {name.partition(".")[0] for name in names} == {"env"}
            intended = environments(conf / group / f"{choice}.yaml") if group not in first and env else set()
            if supported and (group in first or not only_env) and (not intended or env in intended):
                found.append(choice)
        yield group, sorted(found, key=lambda choice: (choice != first.get(group), choice))
