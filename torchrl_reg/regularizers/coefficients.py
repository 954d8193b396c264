"""Coefficients of a loss: fixed, assigned, learnt by dual ascent, or following the Bellman error."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from torchrl_reg.regularizers.checks import (
    ExactBuffers,
    Number,
    check_number,
    check_rate,
    check_temperature,
    exact_scalar,
)


def in_process_group() -> bool:
    """True if ``torch.distributed`` has a process group: there, a batch is the batches of all ranks."""
    return dist.is_available() and dist.is_initialized()


def summed_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's ``tensor``, without gradient."""
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gathered_from_ranks(tensor: Tensor, dim: int) -> Tensor:
    """Every rank's ``tensor``, all of one shape, joined along ``dim``; without gradient."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts, dim)


Check = Callable[[Any, str], float]


def check_positive(value: Any, name: str) -> float:
    """Return ``value`` if it is a finite number > 0, else raise ValueError."""
    return check_number(value, name, "a coefficient", positive=True)


class Coefficient(ExactBuffers):
    """A scalar that is fixed, or scheduled by assignment: ``coefficient.assign(0.01)``.

    It is kept in float64 for networks of any dtype: a published value stays exact in double precision, a small
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
    #: True if it has its own loss (:meth:`objective`), which an optimizer minimizes.
    is_learnt: ClassVar[bool] = False
    #: True if it follows the error that :meth:`observe` is given.
    follows_error: ClassVar[bool] = False

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
        """Store whether ``value`` is nonzero, and the tensor that holds it."""
        unread = isinstance(value, Tensor) and value.device.type != "cpu"
        self._noted = (unread or bool(value != 0), self._buffers.get("current"))

    def objective(self, statistic: Tensor) -> Tensor | None:
        """The loss that a learnt coefficient descends, given the statistic it controls; None if it has no such loss."""
        return None

    def observe(self, statistic: Tensor | float) -> None:
        """Update from a statistic of the last batch; does nothing by default."""

    def _apply(self, fn: Any, recurse: bool = True) -> Coefficient:
        super()._apply(fn, recurse)
        self._note(self._noted[0])  # a cast replaces the tensor
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note(self.value.is_meta or bool((self.value != 0).any()))


def as_coefficient(
    value: Any, *, name: str, check: Check = check_positive, device: torch.device | str | None = None
) -> Coefficient:
    """``value`` itself if it is a :class:`Coefficient` already (then shared), else one that starts there."""
    return value if isinstance(value, Coefficient) else Coefficient(value, name=name, check=check, device=device)


if TYPE_CHECKING:

    class CoefficientProperty:
        """Is read as a tensor and assigned a number."""

        def __get__(self, owner: Any, kind: type | None = None) -> Tensor: ...
        def __set__(self, owner: Any, value: Number | None) -> None: ...


def coefficient(name: str, doc: str) -> CoefficientProperty:
    """A property that reads and assigns the owner's submodule ``name``, a :class:`Coefficient`.

    In a constructor, where there is none yet, assigning a number > 0 makes it.
    """

    def get(owner: nn.Module) -> Tensor:
        return owner._modules[name].value  # type: ignore[union-attr, return-value]  # 1 us less than by getattr

    def put(owner: nn.Module, value: Any) -> None:
        held = owner._modules.get(name)
        if held is None:
            owner._modules[name] = Coefficient(value, name=name.removesuffix("_coefficient"))
        else:
            held.assign(value)  # type: ignore[operator]

    return property(get, put, doc=doc)  # type: ignore[return-value]


class CoefficientOwner(ExactBuffers):
    """Base of the regularizers and the shapings: ``coefficient_names`` become properties of a subclass.

    A constructor sets ``self.tau = 0.5``, a number > 0, or ``self.tau_coefficient = as_coefficient(tau, name="tau")``,
    which also takes a :class:`Coefficient` (learnt, shared, or with another check). Reading ``self.tau`` gives its
    value, a 0-dimensional tensor, and a later assignment changes that value.
    """

    #: Names of the coefficients that can be assigned, which losses report.
    coefficient_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.coefficient_names:
            if not hasattr(cls, name):
                setattr(cls, name, coefficient(f"{name}_coefficient", f"The current {name}."))

    def coefficients(self) -> dict[str, Coefficient]:
        """The :class:`Coefficient` objects, by the name they are assigned under.

        Raises:
            AttributeError: a declared coefficient that the constructor has not set.
        """
        found: dict[str, Coefficient] = {}
        for name in self.coefficient_names:
            held = getattr(self, f"{name}_coefficient", None)
            if held is None:
                raise AttributeError(
                    f"{type(self).__name__} must set self.{name} (a number) or self.{name}_coefficient (a Coefficient) "
                    "in its constructor, as coefficient_names declares it, got none."
                )
            found[name] = held
        return found

    def scalars(self) -> dict[str, Tensor]:
        """The current coefficients."""
        return {name: getattr(self, name) for name in self.coefficient_names}


class DualCoefficient(Coefficient):
    """A multiplier learnt by dual ascent: descending ``-s ln value (x - target)`` holds ``x`` at its target.

    With ``rises="above"`` (``s = 1``) it rises while the statistic is above its target, as the weight of a KL budget
    does; with ``rises="below"`` (``s = -1``) while it is below, as the temperature of an entropy target does. The
    current value is ``exp(log_value)``, a constant under differentiation; the parameter ``log_value`` belongs to the
    optimizer that trains the loss.

    Args:
        value: the first value, a finite number > 0.
        target: what the mean of the statistic is held at, in its own unit (entropy and KL: nats).
        rises: ``"above"`` or ``"below"`` the target.
        name, check, device: see :class:`Coefficient`.

    Raises:
        ValueError: ``value`` not > 0, ``target`` not finite, ``rises`` another word.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, section 5.

    >>> lam = DualCoefficient(0.5, target=0.1, rises="above", name="lam")
    >>> lam.objective(torch.tensor(0.3)).backward()
    >>> bool(lam.log_value.grad < 0)  # a step downhill raises lam
    True
    """

    is_learnt = True

    def __init__(
        self,
        value: Any,
        *,
        target: float,
        rises: str,
        name: str = "coefficient",
        check: Check = check_positive,
        device: torch.device | str | None = None,
    ) -> None:
        if rises not in ("above", "below"):
            raise ValueError(f"rises must be 'above' or 'below', got {rises!r}.")
        super().__init__(value, name=name, check=partial(_with_logarithm, check=check), device=device)
        self.target = check_number(target, "target", f"what the statistic behind {name} is held at")
        self.rises = rises

    def _hold(self, value: float, device: torch.device | str | None) -> None:
        self.log_value = nn.Parameter(torch.tensor(math.log(value), device=device))

    def _apply(self, fn: Any, recurse: bool = True) -> DualCoefficient:
        exact = self.log_value.data
        super()._apply(fn, recurse)
        if self.log_value.dtype in (torch.bfloat16, torch.float16):  # an optimizer's steps would be rounded away
            self.log_value.data = exact.to(self.log_value.device)
        return self

    @property
    def value(self) -> Tensor:
        return self.log_value.detach().exp()

    def _write(self, value: Tensor) -> None:
        self.log_value.fill_(value.log())

    def objective(self, statistic: Tensor) -> Tensor:
        excess = statistic.detach() - self.target
        return -self.log_value * excess if self.rises == "above" else self.log_value * excess


def _with_logarithm(value: Any, name: str, check: Check) -> float:
    number = check(value, name)
    if not number > 0:
        raise ValueError(f"{name} must be > 0 where it is learnt (by its logarithm), got {number!r}.")
    return number


class BellmanErrorCoefficient(Coefficient):
    """A running average of the Bellman error: ``value <- (1 - rate) value + rate scale L``, clipped to its bounds.

    With ``inverse=True`` it averages ``scale / L`` instead: the inverse temperature of MIRL. ``L`` is what
    :meth:`observe` is given, the mean squared TD error (losses return it as ``squared_td_error``) or any other power.
    ``rate=1`` keeps no memory: the error of the last batch alone. A batch of the data that trained the critic
    underestimates the error, an average over past batches lags behind it.

    Args:
        value: the first value, between the bounds, in the unit of what it multiplies (a temperature: reward units).
        rate: step size per call, in (0, 1].
        scale: weight of the error > 0.
        inverse: follow the reciprocal.
        low, high: bounds of the value, ``0 < low <= high``.
        error_floor: smallest ``L`` that counts, > 0.
        name, check, device: see :class:`Coefficient`.

    Raises:
        ValueError: a value out of range.

    Source: Fellows et al., "VIREL", NeurIPS 2019, section 3 (the temperature is ``c/p ||TQ - Q||_p^p``); Grau-Moya et
    al., "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019 (``inverse=True``); the bounds are ours.

    >>> beta = BellmanErrorCoefficient(1.0, rate=0.5, inverse=True)
    >>> beta.observe(torch.tensor(0.25))
    >>> float(beta.value)
    2.5
    """

    follows_error = True

    def __init__(
        self,
        value: Any,
        *,
        rate: float,
        scale: float = 1.0,
        inverse: bool = False,
        low: float = 1e-2,
        high: float = 1e3,
        error_floor: float = 1e-6,
        name: str = "coefficient",
        check: Check = check_positive,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0 < low <= high < math.inf:
            raise ValueError(f"The bounds must satisfy 0 < low <= high, finite, got {low!r} and {high!r}.")
        first = check(value, name)
        if not low <= first <= high:
            raise ValueError(f"{name} must start between its bounds {low:g} and {high:g}, got {value!r}.")
        super().__init__(value, name=name, check=check, device=device)
        self.rate, self.inverse, self.low, self.high = check_rate(rate), inverse, low, high
        self.scale = check_number(scale, "scale", "the weight of the error", positive=True)
        self.error_floor = check_number(error_floor, "error_floor", "the smallest error that counts", positive=True)

    @torch.no_grad()
    def observe(self, statistic: Tensor | float) -> None:
        """Follow ``statistic``, the ``L`` of the last update; one that is not finite is ignored.

        Losses return it over the batches of all ranks, where ``torch.distributed`` has a process group.
        """
        error = torch.as_tensor(statistic, device=self.value.device).detach().to(self.value.dtype).reshape(())
        floored = error.clamp(min=self.error_floor)
        goal = self.scale / floored if self.inverse else self.scale * floored
        moved = torch.where(error.isfinite(), torch.lerp(self.value, goal, self.rate), self.value)
        self._write(moved.clamp(self.low, self.high))


def learnt_at_target(
    value: Any,
    target: float | None,
    *,
    target_name: str,
    rises: str,
    name: str,
    check: Check,
    device: torch.device | str | None = None,
) -> Coefficient:
    """``value`` as a fixed coefficient, or, where a ``target`` is given, a :class:`DualCoefficient` that starts there.

    Raises:
        ValueError: a ``target`` for a ``value`` that is a coefficient already, or out of range.
    """
    if target is None:
        return as_coefficient(value, name=name, check=check, device=device)
    if isinstance(value, Coefficient):
        raise ValueError(f"{target_name} must be None where {name} is a coefficient already, got {target!r}.")
    target = check_number(target, target_name, "nats")
    return DualCoefficient(value, target=target, rises=rises, name=name, check=check, device=device)


def entropy_temperature(
    tau: Any, target_entropy: float | None, *, device: torch.device | str | None = None
) -> Coefficient:
    """A temperature that is fixed, or rises while the policy's entropy is below ``target_entropy`` nats.

    Raises:
        ValueError: as :func:`learnt_at_target`.
    """
    return learnt_at_target(
        tau,
        target_entropy,
        target_name="target_entropy",
        rises="below",
        name="tau",
        check=check_temperature,
        device=device,
    )


def guaranteed_temperature(share: float, *, reward_range: float, cost_range: float) -> float:
    r"""``tau = share (r_max - r_min) / k``: regularization costs at most this share of what returns can differ by.

    .. math:: V^* - V^{\pi_\tau} \le \frac{\tau k}{1 - \gamma} = share \cdot \frac{r_{max} - r_{min}}{1 - \gamma}

    in every state, for the optimum ``pi_tau`` of the regularized problem, and for its greedy policy ``argmax q`` too;
    ``gamma`` cancels. The guarantee is that of the exact optimum: a network's errors come on top.

    Proof: ``pi_tau`` is at least as good as ``pi*`` once both pay ``Omega``; so it loses at most what ``pi*`` pays more
    than it, ``max Omega - min Omega`` a step, and ``1 / (1 - gamma)`` discounted steps. A Munchausen term, clipped or
    not, keeps the bound for the entropy: its fixed point has ``V* <= V <= V^pi + tau ln A / (1 - gamma)``.

    Args:
        share: what may be lost, in (0, 1), of ``(r_max - r_min) / (1 - gamma)``: no two returns differ by more.
        reward_range: ``r_max - r_min`` > 0 of all rewards, the 0 that follows a terminal state among them.
        cost_range: ``k = (max Omega - min Omega) / tau`` > 0 over the policies ``pi [A]``: ``ln A`` for
            :class:`Entropy` and :class:`Boltzmann`, ``(1 - A^(1 - q)) / (q (q - 1))`` for :class:`Tsallis` (``(A - 1) /
            2A`` at ``q = 2``), ``max -ln rho`` over the actions that the prior allows for :class:`PriorKL`.

    Raises:
        ValueError: an argument out of range.

    Source: Geist, Scherrer, Pietquin, "A Theory of Regularized MDPs", ICML 2019, proposition 3; the scale is ours.

    >>> tau = guaranteed_temperature(0.01, reward_range=1.0, cost_range=math.log(2))  # of CartPole
    >>> round(tau, 6)
    0.014427
    """
    if not check_number(share, "share", "what may be lost, below 1", positive=True) < 1:
        raise ValueError(f"share must be below 1, got {share!r}.")
    spread = check_number(reward_range, "reward_range", "r_max - r_min", positive=True)
    return float(share) * spread / check_number(cost_range, "cost_range", "in units of tau", positive=True)
