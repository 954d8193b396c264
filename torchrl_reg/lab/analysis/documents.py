"""YAML and JSON files of runs and sweeps, bounded in size and depth, and the errors that name a damaged one."""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torchrl_reg.lab.errors import UserError


def one_of(name: str, value: str, known: Collection[str]) -> str:
    """``value`` if it is ``known``.

    Raises:
        UserError: it is not; the message says that of ``name``.
    """
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    return value


def hint(value: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` where one of ``known`` is near ``value``, else nothing."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


#: Bytes of a file, settings of a config, and levels it may nest.
_LARGEST, _MOST_SETTINGS, _DEEPEST = 1 << 22, 10_000, 32
# What a config of ours never has: aliases, brackets within brackets, lists in one line, forty spaces before a key.
_UNUSUAL = re.compile(r"\*|[\[{][^\]}]*[\[{]|- -|\?|^ {40}", re.MULTILINE)


def opened(path: Path) -> BinaryIO:
    """``path``, open for reading.

    Raises:
        OSError: it is not there, or a pipe or a device, which need not have an end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device")
    return path.open("rb")


def read_text(path: Path) -> str:
    """The text of ``path``; empty without the file.

    Raises:
        UserError: it cannot be read, or is larger than 4 MiB.
    """
    try:
        with opened(path) as file:
            found = file.read(_LARGEST + 1)
        if len(found) > _LARGEST:
            raise UserError(f"{path} must be at most {_LARGEST >> 20} MiB, got more.")
        return found.decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} could not be read: {error}.") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None without the file.

    Raises:
        UserError: it holds something else.
    """
    text = read_text(path)
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise UserError(f"{path} must be JSON, got {text[:40]!r}.") from None
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, got {text[:40]!r}.")
    return found


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; None without the file.

    Aliases (``*name``) are refused: a few lines of them can stand for billions of values, and none are written here.

    Raises:
        UserError: it is no YAML, holds aliases or nests too deeply, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError("reading run folders needs PyYAML, got none: pip install 'torchrl_reg[report]'.") from error
    text = read_text(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 2 ms a config, in Python 15
    try:
        if _UNUSUAL.search(text):  # checked first: deep nesting crashes the interpreter inside the C loader
            try:
                _refuse_unbounded(yaml.parse(text, Loader=loader), path)
            except yaml.YAMLError:  # since PyYAML 6.0.4 the C loader reads ahead and refuses deep nesting itself
                _refuse_unbounded(yaml.parse(text, Loader=yaml.SafeLoader), path)
        return yaml.load(text, Loader=loader)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, TypeError):  # ValueError: 0001-99-99 is a date to YAML
        raise UserError(f"{path} must be YAML, got something else.") from None


def _refuse_unbounded(events: Iterator[Any], path: Path) -> None:
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if kind == "AliasEvent":
            raise UserError(f"{path} must be YAML without aliases, got one.")
        if depth > _DEEPEST:
            raise UserError(f"{path} must nest at most {_DEEPEST} levels, got more.")


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"algo": {"tau": 1}}`` as ``{"algo.tau": 1}``; empty sections are kept, and the later of two duplicates wins.

    Raises:
        UserError: more than 10,000 settings.

    >>> flat({"algo": {"tau": 1, "more": {}}, "algo.tau": 2})
    {'algo.tau': 2, 'algo.more': {}}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
        if len(found) > _MOST_SETTINGS:
            raise UserError(f"a config must hold at most {_MOST_SETTINGS} settings, got more.")
    return found
