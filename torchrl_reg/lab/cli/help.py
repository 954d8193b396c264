"""``--help`` of a recipe: every setting with its value and comment, and the choices that go with the recipe."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchrl_reg.lab.cli.field_comments import descriptions
from torchrl_reg.lab.cli.groups import first_choices, supported_choices
from torchrl_reg.lab.cli.invocation import as_typed

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
    first = first_choices(config_class)
    for group, found in supported_choices(conf, config_class, env):
        named = [f"{choice} (default)" if choice == first.get(group) else choice for choice in found]
        for index, line in enumerate(textwrap.wrap(", ".join(named), _WIDTH - 14)):
            yield f"  {'' if index else f'{chr(43) * (group not in first)}{group}=':<12}{line}"
