"""Modules that own coefficients, which read and assign like numbers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from torchrl_reg.regularizers.coefficient import Coefficient, check_positive, coefficient, made_coefficient


class CoefficientOwner(nn.Module):
    """Base of the regularizers and the shapings: ``self.tau = 0.5`` in a constructor makes the coefficient ``tau``.

    A number must be > 0; a :class:`Coefficient` stays what it is (learnt, shared, or with another check). Reading
    ``self.tau`` gives its value, a 0-dimensional tensor, and a later assignment changes that value.
    """

    #: Names of the coefficients that can be assigned, which losses report.
    coefficient_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.coefficient_names:
            if not hasattr(cls, name):
                setattr(cls, name, coefficient(f"{name}_coefficient", f"The current {name}."))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.coefficient_names:
            super().__setattr__(name, value)
        elif hasattr(self, f"{name}_coefficient"):
            getattr(self, f"{name}_coefficient").assign(value)
        else:
            setattr(self, f"{name}_coefficient", made_coefficient(value, name=name, check=check_positive))

    def coefficients(self) -> dict[str, Coefficient]:
        """The :class:`Coefficient` objects, by the name they are assigned under.

        Raises:
            AttributeError: a declared coefficient that the constructor has not set.
        """
        for name in self.coefficient_names:
            if not hasattr(self, f"{name}_coefficient"):
                raise AttributeError(
                    f"{type(self).__name__} must set self.{name} in its constructor, as coefficient_names declares it, "
                    "got none."
                )
        return {name: getattr(self, f"{name}_coefficient") for name in self.coefficient_names}
