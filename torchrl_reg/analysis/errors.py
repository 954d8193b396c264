"""What a user is told when finished runs cannot be read, compared or shown as asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnalysisError(ValueError):
    """What was asked of finished runs cannot be done; the message is one sentence saying what to change."""


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """``value`` if it is ``known``.

    Raises:
        AnalysisError: it is not; the message says that of ``name``.
    """
    known = list(known)
    if value not in known:
        raise AnalysisError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    return value


def hint(value: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` where one of ``known`` is near ``value``, else nothing."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
