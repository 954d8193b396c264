"""Working precision and temperature: what every equation first does to its inputs.

Half-precision inputs are computed and returned in float32; float32 and float64 stay as they are.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Temperature: TypeAlias = float | Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself in float32 and float64, a float32 copy in every other dtype."""
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.float()


def temperature_and_divisor(tau: Temperature, dtype: torch.dtype) -> tuple[Temperature, Temperature]:
    """``tau`` and ``max(tau, smallest normal number of dtype)``, safe to divide by at ``tau = 0``.

    A difference of action values over the floored divisor is already infinitely many temperatures
    wide, so the floor changes no result; without it ``0 / 0`` at the best action is NaN, and CUDA's
    multiplication by ``1 / tau`` overflows for a subnormal ``tau``.

    Raises:
        ValueError: if ``tau`` is a number that is negative, infinite or NaN, or a tensor with
            dimensions. The value inside a tensor is not checked: that would wait for the device.
    """
    floor = torch.finfo(dtype).tiny
    if isinstance(tau, Tensor):
        if tau.ndim != 0:
            raise ValueError(f"tau must be a number or a 0-dimensional tensor, got shape {tuple(tau.shape)}.")
        # A 0-dimensional tensor never promotes the data, so a float64 coefficient needs no cast.
        tau = at_least_float32(tau)
        # float64's smallest number would round to 0 in a float32 coefficient.
        return tau, tau.clamp(min=max(floor, torch.finfo(tau.dtype).tiny))
    if not 0.0 <= tau < math.inf:
        raise ValueError(f"tau must be a finite temperature >= 0, got {tau}.")
    return tau, max(tau, floor)
