"""The mean of curves that need not have the same points, nor reach equally far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean at every frame of any curve, over the curves whose span holds it (linear in between)."""
    if not curves:
        return np.zeros(0), np.zeros(0)
    frames = np.unique([frame for curve in curves for frame, _ in curve]).astype(np.float64)
    sums, counts = np.zeros(len(frames)), np.zeros(len(frames))
    for curve in curves:
        x, y = np.array(curve, dtype=np.float64).T
        inside = (frames >= x[0]) & (frames <= x[-1])
        sums += np.where(inside, np.interp(frames, x, y), 0.0)
        counts += inside
    return frames[counts > 0], sums[counts > 0] / counts[counts > 0]
