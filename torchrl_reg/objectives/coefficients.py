"""Checks of the coefficients that losses and value estimators take."""

from __future__ import annotations

import math


def check_temperature(tau: float, name: str = "tau") -> float:
    """Return ``tau`` if it is a finite temperature > 0 (reward units), else raise ValueError."""
    return check_number(tau, name, "the temperature, in reward units", positive=True)


def check_weight(alpha: float, name: str = "alpha") -> float:
    """Return ``alpha`` if it lies in [0, 1], else raise ValueError."""
    if not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
        raise ValueError(f"{name} must be in [0, 1], got {alpha!r}.")
    return float(alpha)


def check_clip(clip_min: float | None, name: str = "clip_min") -> float:
    """Return the lower clip of tau * ln pi as a float <= 0 (None, no clip, is -inf), else raise ValueError."""
    if clip_min is None:
        return -math.inf
    if not (isinstance(clip_min, (int, float)) and clip_min <= 0):
        raise ValueError(
            f"{name} must be <= 0 (a lower clip of tau * ln pi, in reward units) or None, got {clip_min!r}."
        )
    return float(clip_min)


def check_discount(gamma: float, name: str = "gamma") -> float:
    """Return ``gamma`` if it lies in [0, 1], else raise ValueError."""
    if not 0 <= float(gamma) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {gamma!r}.")
    return float(gamma)


def check_kl_weight(lam: float, name: str = "lam") -> float:
    """Return ``lam`` if it is a finite weight >= 0 (reward units), else raise ValueError."""
    if not (isinstance(lam, (int, float)) and math.isfinite(lam) and lam >= 0):
        raise ValueError(f"{name} must be a finite number >= 0 (in reward units), got {lam!r}.")
    return float(lam)


def check_number(value: float, name: str, meaning: str, *, positive: bool = False) -> float:
    """Return ``value`` if it is a finite number (> 0 with ``positive``), else raise ValueError."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive)):
        bound = " > 0" if positive else ""
        raise ValueError(f"{name} must be a finite number{bound} ({meaning}), got {value!r}.")
    return float(value)
