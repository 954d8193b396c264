"""Untrusted text, made safe to print on a terminal."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    r"""``text`` without colours, and with other control codes escaped.

    >>> printable("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J")
    'red \\x1b]0;title\\x07 \\x9b2J'
    """
    if text.isprintable():
        return text
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
