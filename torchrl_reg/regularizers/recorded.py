"""Objects that keep the arguments they were made with."""

from __future__ import annotations

from typing import Any, ClassVar


class Recorded:
    """Mixin of modules that a saved policy may be made of: it is read by making them again with these arguments."""

    #: Says that a file may name this class.
    is_rebuildable: ClassVar[bool] = True
    #: The arguments of the constructor, positional and by name.
    built_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        made.__dict__["built_with"] = (args, kwargs)
        return made
