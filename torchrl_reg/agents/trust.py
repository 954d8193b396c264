"""Which modules that a file names may be imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection
from types import ModuleType


class Untrusted(ValueError):
    """A file names a module that was neither imported nor trusted by the caller; the message says which."""


def trusted_module(name: str, trust: Collection[str]) -> ModuleType:
    """The module that a file names: one that is imported already, or that ``trust`` (or a package above it) names.

    Importing a module runs its code, so a file that anybody may have written has none imported.

    Raises:
        Untrusted: it is neither.
    """
    if is_trusted(name, trust):
        if os.getcwd() not in sys.path:  # where a run finds it, too
            sys.path.append(os.getcwd())
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            where = "from the working directory and PYTHONPATH"
            raise Untrusted(f"names the module {name!r}, which cannot be imported {where}: {error}") from None
    module = sys.modules.get(name)
    if module is None:
        raise Untrusted(
            f"names the module {name!r}, which nobody has imported here: if you trust it, pass "
            f"load_policy(..., trust=[{name!r}]), or --trust {name} to a command"
        )
    return module


def is_trusted(name: str, trust: Collection[str]) -> bool:
    """Whether ``trust`` names the module ``name`` or a package above it."""
    return any(name == each or name.startswith(f"{each}.") for each in trust)
