"""Reads YAML and JSON files of runs and sweeps, bounded in size and depth."""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from torchrl_reg.lab.errors import UserError


def one_of(name: str, value: str, known: Collection[str]) -> str:
    """``value`` if it is one of ``known``.

    Raises:
        UserError: it is not; the message begins with ``name``.
    """
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    return value


def hint(value: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` if one of ``known`` resembles ``value``, else an empty string."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


#: Bytes of a file, settings of a config, and levels of nesting.
_MAX_BYTES, _MAX_SETTINGS, _MAX_DEPTH = 1 << 22, 10_000, 32
# Absent from every config that a run writes: aliases, nested brackets, lists in one line, deep indentation.
_UNUSUAL = re.compile(r"\*|[\[{][^\]}]*[\[{]|- -|\?|^ {40}", re.MULTILINE)


def open_file(path: Path) -> BinaryIO:
    """Opens ``path`` for reading.

    Raises:
        OSError: no such file, or a pipe or device, where reading may not end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device")
    return path.open("rb")


def read_text(path: Path) -> str:
    """The text of ``path``; empty if there is no file.

    Raises:
        UserError: it cannot be read, or is larger than 4 MiB.
    """
    try:
        with open_file(path) as file:
            found = file.read(_MAX_BYTES + 1)
        if len(found) > _MAX_BYTES:
            raise UserError(f"{path} must be at most {_MAX_BYTES >> 20} MiB, got more.")
        return found.decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} could not be read: {error}.") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file.

    Raises:
        UserError: the file holds something else.
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
    """The content of a YAML file, paths as text; None if there is no file.

    Aliases (``*name``) are refused: a few lines of them can expand to billions of values.

    Raises:
        UserError: it is not YAML, holds aliases or nests too deeply, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError("reading run folders needs PyYAML, got none: pip install 'torchrl_reg[report]'.") from error
    text = read_text(path)
    loader = _yaml_loader()
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


@cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, which also reads the ``pathlib.Path`` of a user's recipe: its run could not resume."""
    import yaml

    # 2 ms a config; the Python loader takes 15.
    loader: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    loader.add_multi_constructor(
        "tag:yaml.org,2002:python/object/apply:pathlib.",
        lambda loader, suffix, node: str(PurePosixPath(*loader.construct_sequence(node))),
    )
    return loader


def _refuse_unbounded(events: Iterator[object], path: Path) -> None:
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if kind == "AliasEvent":
            raise UserError(f"{path} must be YAML without aliases, got one.")
        if depth > _MAX_DEPTH:
            raise UserError(f"{path} must nest at most {_MAX_DEPTH} levels, got more.")


def flat(tree: object, prefix: str = "") -> dict[str, Any]:
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
        if len(found) > _MAX_SETTINGS:
            raise UserError(f"a config must hold at most {_MAX_SETTINGS} settings, got more.")
    return found
