"""Comments on the fields of a dataclass, read from its source for ``--help``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """Field -> the comment after it, else its entry under ``Args:`` in the docstring."""
    found = _arguments(inspect.getdoc(kind) or "")
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= _comments(parent)
    return found


def _comments(kind: type) -> dict[str, str]:
    try:
        lines, _ = inspect.getsourcelines(kind)
    except (OSError, TypeError):  # no source: a class created at run time
        return {}
    found, name = dict[str, str](), ""
    for line in lines:
        field = re.match(r"    (\w+): ", line)
        name = field[1] if field else name
        _, mark, comment = line.partition("  # ")
        if mark and name:
            found.setdefault(name, comment.strip())
    return found


def _arguments(text: str) -> dict[str, str]:
    """``{"tau": "a temperature."}`` of the ``Args:`` of a docstring, without the marks of Sphinx."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"\1", text).replace("``", "")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", text.partition("Args:\n")[2], re.MULTILINE)
    return {name: " ".join(entry.split()) for names, entry in entries for name in names.split(", ")}
