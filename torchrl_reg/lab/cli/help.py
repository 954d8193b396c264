"""``--help`` of a recipe: every setting with its value and comment, and the supported choices."""

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
_FLAGS = """Other options:
  -m NAME=A,B          one run for each value (Hydra's multirun); +GROUP=CHOICE adds a choice that has no default
  --cfg job            prints the settings as they would be used, and runs nothing
  --check              reads JSON lists of settings from stdin and checks whether they can be run"""


def help_text(config_class: type, train: Callable[..., Any], conf: Path, config: DictConfig) -> str:
    """The text that ``--help`` prints.

    Args:
        config_class: the recipe's; settings are described by the comments after its fields, or by ``Args:``.
        train: the recipe's function; the docstring of its module comes first.
        conf: folder of the config groups.
        config: the composed settings, whose values are shown.
    """
    about = as_typed(inspect.getdoc(sys.modules[train.__module__]) or "")
    parts = [about, "Settings, written NAME=VALUE, with the values they would have now:"]
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if isinstance(node := config.get(item.name), DictConfig):
            parts.append("\n".join([item.name, *_lines(hints[item.name], node, f"{item.name}.")]))
    env = OmegaConf.select(config, "env.name")
    if choices := list(_choices(config_class, conf, env)):
        note = f"; those written +GROUP=CHOICE are for env.name={env}" if env else ""
        parts.append("\n".join([f"Choices, written GROUP=CHOICE{note}:", *choices]))
    return "\n\n".join([*parts, _FLAGS])


def _lines(kind: Any, node: DictConfig, prefix: str) -> Iterator[str]:
    declared = dataclasses.is_dataclass(kind)
    hints, comments = (typing.get_type_hints(kind), descriptions(kind)) if declared else ({}, {})
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig) and value:
            yield from _lines(hints.get(key), value, f"{prefix}{key}.")
            continue
        shown = f"  {prefix}{key}={_shown(value)}"
        described = textwrap.wrap(comments.get(key, ""), _WIDTH - _COLUMN) or [""]
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
    """Lines with the supported choices of each group in ``env``, the default one first."""
    first = first_choices(config_class)
    for group, found in supported_choices(conf, config_class, env):
        named = [f"{choice} (default)" if choice == first.get(group) else choice for choice in found]
        label = f"{group}=" if group in first else f"+{group}="
        for index, line in enumerate(textwrap.wrap(", ".join(named), _WIDTH - 14)):
            yield f"  {'' if index else label:<12}{line}"
