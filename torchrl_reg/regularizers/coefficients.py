"""Coefficients of a loss: fixed, assigned, learnt by dual ascent, or following the Bellman error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from torchrl_reg.regularizers.checks import (
    ExactBuffers,
    as_number,
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


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise largest of every rank's ``tensor``, without gradient."""
    largest = tensor.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


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

    @property
    def value(self) -> Tensor:
        return self.log_value.detach().exp()

    def _write(self, value: Tensor) -> None:
        self.log_value.fill_(value.log())

    def objective(self, statistic: Tensor) -> Tensor:
        excess = statistic.detach() - self.target
        return -self.log_value * excess if self.rises == "above" else self.log_value * excess


def _with_logarithm(value: Any, name: str, check: Check) -> float:
    value = check(value, name)
    if not value > 0:
        raise ValueError(f"{name} must be > 0 where it is learnt (by its logarithm), got {value!r}.")
    return value


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
        low, high: bounds of the value, ``0 < low <= high``; of a temperature ``high`` may be ``"loss<=1%"``, which
            follows the rewards (:class:`GuaranteedTemperature`) and prevails over ``low``.
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
        high: float | str | GuaranteedTemperature = 1e3,
        error_floor: float = 1e-6,
        name: str = "coefficient",
        check: Check = check_positive,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(high, str):
            high = GuaranteedTemperature(high, name="high", device=device)
        ceiling, most = (high, math.inf) if isinstance(high, GuaranteedTemperature) else (None, high)
        if not 0 < low <= most < math.inf and ceiling is None:
            raise ValueError(f"The bounds must satisfy 0 < low <= high, finite, got {low!r} and {high!r}.")
        super().__init__(value, name=name, check=check, device=device)
        self.ceiling, self.follows_rewards = ceiling, ceiling is not None
        self.rate, self.inverse, self.low, self.high = check_rate(rate), inverse, low, most
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
        moved = moved.clamp(self.low, self.high)
        self._write(moved if self.ceiling is None else self.ceiling.limited(moved))

    @property
    def cost_range(self) -> float | None:
        """``k`` of an upper bound that follows the rewards, once it has one."""
        return None if self.ceiling is None else self.ceiling.cost_range

    def bind(self, cost_range: float) -> None:
        """As :meth:`GuaranteedTemperature.bind`, of the upper bound."""
        assert self.ceiling is not None, "a bound that is a number needs no cost_range"
        self.ceiling.bind(cost_range)

    @torch.no_grad()
    def observe_rewards(self, rewards: Tensor, terminated: Tensor | None = None) -> None:
        if self.ceiling is not None:
            self.ceiling.observe_rewards(rewards, terminated)
            self._write(self.ceiling.limited(self.value))


def learnt_at_target(value: Any, target: float | None, *, target_name: str, rises: str, **how: Any) -> Coefficient:
    """``value`` as a fixed coefficient, or, where a ``target`` is given, a :class:`DualCoefficient` that starts there.

    Raises:
        ValueError: a ``target`` for a ``value`` that is a coefficient already, or out of range.
    """
    if target is None:
        return made_coefficient(value, **how)
    if isinstance(value, Coefficient):
        raise ValueError(f"{target_name} must be None where {how['name']} is a coefficient already, got {target!r}.")
    return DualCoefficient(value, target=check_number(target, target_name, "nats"), rises=rises, **how)


def entropy_temperature(tau: Any, target_entropy: float | None, **how: Any) -> Coefficient:
    """A temperature that is fixed, or rises while the policy's entropy is below ``target_entropy`` nats.

    Raises:
        ValueError: as :func:`learnt_at_target`.
    """
    how |= {"name": "tau", "check": check_temperature, "rises": "below"}
    return learnt_at_target(tau, target_entropy, target_name="target_entropy", **how)


_WRITTEN = re.compile(r"\s*loss\s*<=\s*([0-9.eE+-]+)\s*%\s*")


class GuaranteedTemperature(Coefficient):
    r"""``tau = share (r_max - r_min) / k``: regularization costs at most this share of what returns can differ by.

    .. math:: V^* - V^{\pi_\tau} \le \frac{\tau k}{1 - \gamma} = share \cdot \frac{r_{max} - r_{min}}{1 - \gamma}

    in every state, for the optimum ``pi_tau`` of the regularized problem, and for its greedy policy ``argmax q`` too.
    ``k = (max Omega - min Omega) / tau`` (:meth:`Regularizer.cost_range`) is ``ln A`` for the entropy, ``(A - 1) / 2A``
    for the sparsemax, ``max -ln rho`` for the KL to a prior.

    Proof: ``pi_tau`` is at least as good as ``pi*`` once both pay ``Omega``; so it loses at most what ``pi*`` pays more
    than it, ``max Omega - min Omega`` a step, and ``1 / (1 - gamma)`` discounted steps. A Munchausen term, clipped or
    not, keeps the bound for the entropy: its fixed point has ``V* <= V <= V^pi + tau ln A / (1 - gamma)``.

    ``r_min`` and ``r_max`` are those of all rewards ``[*B]`` seen, the 0 that follows a terminal state among them, so
    the share is of ``(r_max - r_min) / (1 - gamma)``: no two returns differ by more. Rewards scaled by ``c`` scale
    ``tau`` by ``c``, and so change no optimal policy. The guarantee is that of the exact optimum: a network's errors
    come on top. Until two rewards differ there is no scale, and ``tau`` is :attr:`least`, practically a maximum.

    Args:
        share: what may be lost, in (0, 1); or ``"loss<=1%"``.
        cost_range: ``k`` > 0; None: whoever makes the loss gives it (:meth:`bind`).
        name, check, device: see :class:`Coefficient`.

    Raises:
        ValueError: a share out of range, another text.

    Source: Geist, Scherrer, Pietquin, "A Theory of Regularized MDPs", ICML 2019, proposition 3; the scale is ours.

    >>> tau = GuaranteedTemperature("loss<=1%", cost_range=math.log(2))
    >>> tau.observe_rewards(torch.tensor([1.0, 1.0]), torch.tensor([False, True]))  # as of CartPole
    >>> round(float(tau.value), 6)
    0.014427
    """

    follows_rewards = True
    exact_buffers = ("current", "ends")
    #: The temperature before two rewards differ, in reward units.
    least = 1e-8

    def __init__(
        self,
        share: Any,
        *,
        cost_range: float | None = None,
        name: str = "tau",
        check: Check = check_temperature,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(self.least, name=name, check=check, device=device)
        self.share = _share(share, name)
        self.cost_range: float | None = None
        # -r_min and r_max, so that both only rise.
        self.register_buffer("ends", torch.full_like(self.value, -math.inf).repeat(2))
        if cost_range is not None:
            self.bind(cost_range)

    def bind(self, cost_range: float) -> None:
        """Take ``k = (max Omega - min Omega) / tau`` of what this weighs.

        Raises:
            ValueError: not a finite number > 0.
        """
        if not 0 < cost_range < math.inf:
            why = "with one action, or a cost without bounds, there is nothing to guarantee"
            raise ValueError(f"cost_range must be a finite number > 0 (in units of tau), got {cost_range!r}: {why}.")
        self.cost_range = float(cost_range)

    @torch.no_grad()
    def observe_rewards(self, rewards: Tensor, terminated: Tensor | None = None) -> None:
        """Take in ``rewards`` of single steps, and where they ended an episode (same shape); not finite: ignored.

        In a process group those of all ranks, which must make the same calls.

        Raises:
            ValueError: ``k`` was never given.
        """
        if self.cost_range is None:
            raise ValueError(f"{self.name} must be given its cost_range first, by a loss or by bind(k), got none.")
        ends: Tensor = self.ends  # type: ignore[assignment]
        seen = rewards.detach().to(ends).flatten()
        if terminated is not None:
            seen = torch.cat((seen, seen.masked_fill(terminated.to(ends.device).flatten(), 0.0)))
        both = torch.stack((-seen, seen)).nan_to_num(-math.inf, -math.inf, -math.inf).amax(-1)
        ends.copy_(torch.maximum(ends, largest_over_ranks(both) if in_process_group() else both))
        self._write(torch.where(self.known, self.share / self.cost_range * ends.sum(), self.least))

    @property
    def known(self) -> Tensor:
        """True once two rewards have differed; 0-dimensional."""
        return self.ends.sum() > 0  # type: ignore[operator]

    def limited(self, value: Tensor) -> Tensor:
        """``value``, but at most this temperature once there is a scale."""
        return torch.where(self.known, torch.minimum(value, self.value), value)


def _share(value: Any, name: str) -> float:
    """``value``, or the number in ``"loss<=1%"``, as a share in (0, 1), else ValueError."""
    share = as_number(value)
    if isinstance(value, str) and (written := _WRITTEN.fullmatch(value)):
        try:
            share = float(written[1]) / 100
        except ValueError:
            share = None
    if share is None or not 0 < share < 1:
        expected = "a number > 0 (in reward units) or 'loss<=1%', above 0% and below 100%"
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return share


def temperature(tau: Any, name: str = "tau") -> Coefficient:
    """``tau`` as a coefficient: a number > 0, a text such as ``"loss<=1%"``, or the coefficient that it is.

    Raises:
        ValueError: anything else.
    """
    if isinstance(tau, str):
        return GuaranteedTemperature(tau, name=name)
    return made_coefficient(tau, name=name, check=check_temperature)


def bind_guaranteed(coefficients: Iterable[Any], cost_range: Callable[[int], float], spec: Any) -> None:
    """Give those of ``coefficients`` that follow rewards, and have no ``k`` yet, that of the actions of ``spec``.

    Raises:
        ValueError: ``spec`` does not tell the number of actions, or there is no ``k``.
    """
    for each in coefficients:
        if each.follows_rewards and each.cost_range is None:
            leaves = [] if spec is None else spec.values(True, True)
            sizes = [n for leaf in leaves if (n := getattr(getattr(leaf, "space", None), "n", None)) is not None]
            if not sizes:
                raise ValueError(
                    f"value_network must have a spec that tells the number of actions where {each.name} is a loss (or "
                    "give it as GuaranteedTemperature(0.01, cost_range=math.log(num_actions))), got none."
                )
            each.bind(cost_range(int(sizes[0])))
