"""Generated tables and figures in Markdown pages, between ``<!-- table: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torchrl_reg.lab.documents import hint, read_text
from torchrl_reg.lab.errors import UserError

#: Functions that return the Markdown of a table, by name; the argument is the word after the name in the marker.
Tables = Mapping[str, Callable[[str], str]]
_MARKED = re.compile(r"<!-- table: (\w+) ?([^>]*?) ?-->(.*?)<!-- end -->", re.S)


def with_tables(text: str, tables: Tables, where: str) -> str:
    """``text`` with its marked tables regenerated; a table on the line of its marker stays on it.

    Raises:
        UserError: an unknown table, or no marker.
    """

    def fill(match: re.Match[str]) -> str:
        name, word, old = match.groups()
        if name not in tables:
            raise UserError(f"{where} must mark tables that exist, got {name!r}.{hint(name, tables)}")
        new = tables[name](word)
        marker = f"<!-- table: {f'{name} {word}'.strip()} -->"
        return f"{marker}\n\n{new.strip()}\n\n<!-- end -->" if old.startswith("\n") else f"{marker}{new}<!-- end -->"

    found, count = _MARKED.subn(fill, text)
    if not count:
        raise UserError(f"{where} must hold a marker such as <!-- table: {next(iter(tables))} -->, got none.")
    return found


def stale_tables(text: str, current: str, where: str) -> Iterator[str]:
    """A sentence on each table of ``text`` that differs from ``current``, with the first line that differs."""
    for old, new in zip(_MARKED.finditer(text), _MARKED.finditer(current), strict=True):
        if old[0] == new[0]:
            continue
        changes = list(difflib.ndiff(old[0].splitlines(), new[0].splitlines()))
        page, rows = (next((line[2:] for line in changes if line.startswith(sign)), "nothing") for sign in "-+")
        yield (
            f"{where}, table {old[1]}{old[2] and ' '}{old[2]}: the page has {page.strip()!r} and the rows give "
            f"{rows.strip()!r}; the table was edited by hand or a row was changed or deleted."
        )


def write_page(path: Path, tables: Tables, *, default: str | None = None) -> Path:
    """Regenerates the tables of the page at ``path``; a missing page is created with the table ``default``.

    Raises:
        UserError: no such page and no ``default``, or as :func:`with_tables`.
    """
    text = read_text(path)
    if not text:
        if default is None:
            raise UserError(f"page must be an existing file, got {path}.")
        text = f"<!-- table: {default} -->\n<!-- end -->\n"
    current = with_tables(text, tables, str(path))
    if current != text:
        path.write_text(current, encoding="utf-8")
    return path
