"""Student's t and the beta distribution, for intervals; scipy (100 MB) would be needed for nothing else."""

from __future__ import annotations

import math


def beta_share(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function ``I_x(a, b)``, by its continued fraction (Lentz's method).

    >>> round(beta_share(0.3, 1.0, 1.0), 12), round(beta_share(0.5, 2.0, 3.0), 12)
    (0.3, 0.6875)
    """
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - beta_share(1 - x, b, a)
    logs = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return math.exp(logs) / a * fraction


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with ``I_x(a, b) = p``.

    >>> round(beta_quantile(0.025, 5.0, 1.0), 4)
    0.4782
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_share(middle, a, b) < p else (low, middle)
    return (low + high) / 2


def t_tail(t: float, df: float) -> float:
    """``P(T > t)`` of Student's t with ``df`` degrees of freedom.

    >>> round(t_tail(2.776445, 4), 6)
    0.025
    """
    tail = beta_share(df / (df + t * t), df / 2, 0.5) / 2
    return 1 - tail if t < 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The quantile of Student's t at ``p`` > 1/2.

    >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.95, 18), 4)
    (2.7764, 1.7341)
    """
    # P(T > t) = I_x(df / 2, 1 / 2) / 2 at x = df / (df + t^2).
    x = beta_quantile(2 * (1 - p), df / 2, 0.5)
    return math.sqrt(df * (1 - x) / x) if x > 0 else math.inf
