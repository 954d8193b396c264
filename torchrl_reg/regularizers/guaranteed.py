"""A temperature chosen by what its regularization may cost, relative to the rewards seen so far."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.regularizers.checks import as_number, check_temperature
from torchrl_reg.regularizers.coefficient import Check, Coefficient, made_coefficient
from torchrl_reg.regularizers.ranks import in_process_group, largest_over_ranks

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
