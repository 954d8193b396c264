"""Objects built from settings with a ``_target_``, as by ``hydra.utils.instantiate``."""

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
    """``hydra.utils.instantiate(settings)`` with further arguments from the recipe; None without a ``_target_``.

    A module's class and arguments are recorded with it, so that a saved policy loads without the run's settings.

    Args:
        settings: ``_target_``, the import path of a class or function, also from the working directory; its keyword
            arguments, which may have a ``_target_`` themselves; and ``name``, a label for tables that is not passed on.
        arguments, options: further arguments, such as networks and specs.

    Raises:
        UserError: the class does not take these arguments.
        InstantiationException: the import path does not exist.

    >>> build({"_target_": "fractions.Fraction", "numerator": 3, "denominator": 4})
    Fraction(3, 4)
    """
    if settings.get("_target_") is None:
        return None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    keywords = {key: value for key, value in settings.items() if key != "name"}
    make = instantiate({**keywords, "_partial_": True, "_convert_": "all"})
    try:
        built = make(*arguments, **options)
    except TypeError as error:  # also what a wrong keyword raises
        raise UserError(f"{settings['_target_']} does not take these settings: {error}.") from error
    if not isinstance(built, nn.Module):
        return built
    return record(built, path_of(make.func), *arguments, **make.keywords, **options)
