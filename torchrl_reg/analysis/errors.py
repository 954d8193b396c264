"""Errors shown to users when finished runs cannot be read, compared or plotted as asked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class AnalysisError(ValueError):
    """A request about finished runs cannot be met; the message says in one sentence what to change."""

    user_error = True


def one_of(name: str, value: str, known: Collection[str]) -> str:
    """``value`` if it is ``known``.

    Raises:
        AnalysisError: it is not; the message says that of ``name``.
    """
    if value not in known:
        raise AnalysisError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    return value


def hint(value: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` where one of ``known`` is near ``value``, else nothing."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
