"""One kind of coefficient for everything that weighs a term: fixed, scheduled by assignment, or learnt.

A coefficient is a module that returns its current value as a 0-dimensional tensor: it is saved in the ``state_dict`` of
every owner, moves with its owners, and a compiled graph reads it without recompilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_reg.regularizers.checks import ExactBuffers, check_number, exact_scalar

Check = Callable[[Any, str], float]


def check_positive(value: Any, name: str) -> float:
    """Return ``value`` if it is a finite number > 0, else raise ValueError."""
    return check_number(value, name, "a coefficient", positive=True)


class Coefficient(ExactBuffers):
    """A scalar that is fixed, or scheduled by assignment: ``coefficient.assign(0.01)``.

    It is kept in float64 whatever the networks compute in: a published value stays exact in double precision, a small
    step is not lost, and a 0-dimensional tensor never promotes the data it multiplies.

    Args:
        value: the first value.
        name: its name in error messages.
        check: ``check(value, name)`` returns the value as a float or raises ValueError, wherever it is set.
        device: of the buffer.

    Attributes:
        is_on: False where the value is known to be 0, so that the term it weighs can be left out. A bool, to avoid a
            device sync: it is updated by :meth:`assign` and ``load_state_dict``, not by a write into the tensor; a
            tensor swapped in (``params.to_module``, ``torch.vmap``) counts as on.

    Raises:
        ValueError: ``value`` fails ``check``.

    >>> tau = Coefficient(0.03, name="tau")
    >>> tau.assign(0.01)
    >>> float(tau.value)
    0.01
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("current",)
    #: True if it has a loss of its own (:meth:`objective`), which an optimizer descends.
    is_learnt: ClassVar[bool] = False
    #: True if it follows the error that :meth:`observe` is given.
    follows_error: ClassVar[bool] = False
    #: True if it follows the rewards that :meth:`observe_rewards` is given.
    follows_rewards: bool = False

    def __init__(
        self,
        value: Any,
        *,
        name: str = "coefficient",
        check: Check = check_positive,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.check = name, check
        number = check(value, name)
        self._hold(number, device)
        self._note(number)

    def _hold(self, value: float, device: torch.device | str | None) -> None:
        self.register_buffer("current", exact_scalar(value, device))

    @property
    def value(self) -> Tensor:
        """The current value, 0-dimensional, without gradient."""
        return self._buffers["current"]  # type: ignore[return-value]

    @torch.no_grad()
    def assign(self, value: Any) -> None:
        """Set the value in place, so that everything that holds this coefficient follows.

        A tensor on a device is not checked: reading it would wait for the device.

        Raises:
            ValueError: a number that fails the check.
        """
        checked = self.checked(value)
        self._write(checked)
        self._note(checked)

    def checked(self, value: Any) -> Tensor:
        """``value`` as :meth:`assign` writes it, or its ValueError."""
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return value
        return torch.tensor(self.check(value, self.name), dtype=torch.float64)

    def _write(self, value: Tensor) -> None:
        # In place: a captured CUDA graph reads this memory. A number is filled in, for a copy waits for the device.
        self.value.fill_(value)

    @property
    def is_on(self) -> bool:
        """False where the value is known to be 0."""
        on, tensor = self._noted
        return on or self._buffers.get("current") is not tensor

    def _note(self, value: Tensor | float) -> None:
        """Remember whether ``value`` is other than 0, and the tensor that holds it."""
        unread = isinstance(value, Tensor) and value.device.type != "cpu"
        self._noted = (unread or bool(value != 0), self._buffers.get("current"))

    def objective(self, statistic: Tensor) -> Tensor | None:
        """The loss that a learnt coefficient descends, given the statistic it controls; None if it has no such loss."""
        return None

    def observe(self, statistic: Tensor | float) -> None:
        """Follow a statistic of the last update; does nothing by default."""

    def observe_rewards(self, rewards: Tensor, terminated: Tensor | None = None) -> None:
        """Follow the rewards of steps as they were collected; does nothing by default."""

    def _apply(self, fn: Any, recurse: bool = True) -> Coefficient:
        super()._apply(fn, recurse)
        self._note(self._noted[0])  # a cast replaces the tensor
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note(self.value.is_meta or bool((self.value != 0).any()))


def made_coefficient(value: Any, *, name: str, check: Check, device: torch.device | str | None = None) -> Coefficient:
    """``value`` itself if it is a :class:`Coefficient` already (then shared), else one that starts there."""
    return value if isinstance(value, Coefficient) else Coefficient(value, name=name, check=check, device=device)


def coefficient(name: str, doc: str) -> Any:
    """A property reading and assigning the owner's submodule ``name``, a :class:`Coefficient`."""

    def get(owner: Any) -> Tensor:
        return owner._modules[name].value  # getattr of a module looks there last; losses read it at every call

    def put(owner: Any, value: Any) -> None:
        owner._modules[name].assign(value)

    return property(get, put, doc=doc)


class CoefficientOwner(ExactBuffers):
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
        found = {name: getattr(self, f"{name}_coefficient", None) for name in self.coefficient_names}
        missing = next((name for name, held in found.items() if held is None), None)
        if missing is not None:
            raise AttributeError(
                f"{type(self).__name__} must set self.{missing} in its constructor, as coefficient_names declares it, "
                "got none."
            )
        return found  # type: ignore[return-value]

    def scalars(self) -> dict[str, Tensor]:
        """The current coefficients."""
        return {name: getattr(self, name) for name in self.coefficient_names}
