"""Terminal output: makes untrusted text safe to print, and prints for a run without letting a failed write end it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import TextIO


def printable(text: str) -> str:
    r"""``text`` without colours, and with other control codes escaped.

    >>> printable("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J")
    'red \\x1b]0;title\\x07 \\x9b2J'
    """
    if text.isprintable():
        return text
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, to_stderr: bool = False, write: Callable[..., object] = print) -> None:
    """Prints a line at once. Where it fails (``| head`` has exited, a full disk), the stream is silent from then on."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by the shell (>&-)
        return
    try:
        write(text, file=stream)
        stream.flush()
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Sends what ``stream`` still holds, and all that follows, to nowhere: at exit Python would raise again."""
    with contextlib.suppress(OSError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
