"""Coefficients that are learnt: by dual ascent towards a target, or from the Bellman error."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_reg.regularizers.checks import check_number, check_rate, check_temperature
from torchrl_reg.regularizers.coefficient import Check, Coefficient, check_positive, made_coefficient
from torchrl_reg.regularizers.guaranteed import GuaranteedTemperature


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
