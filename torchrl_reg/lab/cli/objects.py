"""Objects from settings that name their class as Hydra's do, by ``_target_``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from torch import nn

from torchrl_reg.lab.errors import UserError
from torchrl_reg.modules.rebuilding import path_of, record


def build(settings: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    """``hydra.utils.instantiate(settings)`` with what only the recipe has; None without a ``_target_``.

    A network remembers how it was made, so that a saved policy can be loaded where the run's settings are not.

    Args:
        settings: ``_target_``, the import path of a class or a function, also in the working directory; its keyword
            arguments, which may have a ``_target_`` themselves; and ``name``, which tables show and nobody is passed.
        arguments, options: more arguments: networks, specs.

    Raises:
        UserError: it takes other arguments.
        InstantiationException: there is nothing at that path.

    >>> build({"_target_": "fractions.Fraction", "numerator": 3, "denominator": 4})
    Fraction(3, 4)
    """
    if settings.get("_target_") is None:
        return None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    own = {key: value for key, value in settings.items() if key != "name"}
    make = instantiate({**own, "_partial_": True, "_convert_": "all"})
    try:
        made = make(*arguments, **options)
    except TypeError as error:  # the settings are its arguments
        raise UserError(f"{settings['_target_']} does not take these settings: {error}.") from error
    if not isinstance(made, nn.Module):
        return made
    return record(made, path_of(make.func), *arguments, **make.keywords, **options)
