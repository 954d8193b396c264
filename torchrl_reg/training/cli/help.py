"""``--help`` of a recipe: its docstring, and every setting with default and description, as its source says it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from torchrl_reg.training.cli.config_errors import field_kinds, yaml_groups, yaml_parts, yaml_settings
from torchrl_reg.training.cli.overrides import is_free

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
    about = inspect.getdoc(sys.modules[train.__module__]) or ""
    parts = [about, "Settings, written NAME=VALUE, with the values they would have now:"]
    for name, lines in _sections(config_class, config):
        parts.append("\n".join([name, *lines]))
    if choices := list(_choices(config_class, conf)):
        parts.append("\n".join(["Choices, written GROUP=CHOICE:", *choices]))
    return "\n\n".join([*parts, _FLAGS])


def _sections(config_class: type, config: DictConfig) -> Iterator[tuple[str, list[str]]]:
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        kind, node = hints[item.name], config.get(item.name)
        if dataclasses.is_dataclass(kind) and isinstance(node, DictConfig):
            yield item.name, list(_lines(typing.cast(type, kind), node, f"{item.name}."))
        elif isinstance(node, DictConfig):
            yield item.name, [f"  {name}={_shown(value)}" for name, value in _leaves(node, f"{item.name}.")]


def _leaves(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _lines(kind: type, node: DictConfig, prefix: str) -> Iterator[str]:
    hints, said = typing.get_type_hints(kind), descriptions(kind)
    for item in dataclasses.fields(kind):
        value = None if OmegaConf.is_missing(node, item.name) else node.get(item.name)
        if isinstance(value, DictConfig) and dataclasses.is_dataclass(hints[item.name]):
            yield from _lines(typing.cast(type, hints[item.name]), value, f"{prefix}{item.name}.")
            continue
        shown = f"  {prefix}{item.name}={_shown(value)}"
        described = textwrap.wrap(said.get(item.name, _PLAIN.get(item.name, "")), _WIDTH - _COLUMN) or [""]
        if len(shown) >= _COLUMN - 1:
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


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """Descriptions of the fields: the comment behind each, else its entry under ``Args:`` in the docstring."""
    found = _arguments(inspect.getdoc(kind) or "")
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= _comments(parent)
    return found


def _comments(kind: type) -> dict[str, str]:
    try:
        lines, _ = inspect.getsourcelines(kind)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # no source here: a class made at run time
        return {}
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
            _, hash_sign, comment = lines[node.end_lineno - 1].rstrip().partition("  # ")
            if hash_sign:
                found[node.target.id] = comment.strip()
    return found


def _arguments(text: str) -> dict[str, str]:
    _, there, below = text.partition("Args:\n")
    if not there:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in below.splitlines():
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("     ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found


def _choices(config_class: type, conf: Path) -> Iterator[str]:
    """The choices of every group of ``conf`` that this recipe accepts; what a group starts from comes first."""
    defaults: dict[str, str] = getattr(config_class, "groups", {})
    kinds = field_kinds(config_class)
    known = set(kinds) | {f"{name}.*" for name, kind in kinds.items() if is_free(kind)}
    folders = sorted(path.name for path in conf.iterdir() if path.is_dir()) if conf.is_dir() else []
    for group in [*defaults, *(name for name in folders if name not in defaults and not _is_part(conf, name))]:
        names = sorted(str(p.relative_to(conf / group).with_suffix("")) for p in (conf / group).rglob("*.yaml"))
        first = defaults.get(group)
        fitting = [name for name in names if _fits(conf, group, name, known, defaults)]
        fitting.sort(key=lambda name: (name != first, name))
        wrapped = textwrap.wrap(", ".join(f"{n} (default)" if n == first else n for n in fitting), _WIDTH - 14)
        for index, line in enumerate(wrapped):
            yield f"  {'' if index else f'{chr(43) * (first is None)}{group}=':<12}{line}"


def _fits(conf: Path, group: str, name: str, known: set[str], groups: Mapping[str, str]) -> bool:
    """True if all that ``group/name.yaml`` sets, and what it starts from, are settings of the recipe."""
    path = conf / group / f"{name}.yaml"
    try:
        if not yaml_groups(path) <= groups.keys():
            return False
    except (yaml.YAMLError, OSError):
        return False
    if not all(_fits(conf, part, choice, known, groups) for part, choice in yaml_parts(path, group)):
        return False
    settings = {name for name in yaml_settings(path, group) if f"{name.partition('.')[0]}.*" not in known}
    # What sets the environment alone, and is no choice of one, belongs to recipes that start from it.
    foreign = group not in groups and {setting.partition(".")[0] for setting in settings} == {"env"}
    return settings <= known and not foreign


def _is_part(conf: Path, group: str) -> bool:
    """True if the choices of ``group`` are what other files start from, and not for the command line."""
    return any(f"- /{group}/" in path.read_text(encoding="utf-8") for path in conf.rglob("*.yaml"))
