"""Curves of characters: a line plot of braille dots and a sparkline of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCKS = "▁▂▃▄▅▆▇█"
# The bit of dot (row, column) of a braille character: 4 rows of 2.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def sparkline(values: ArrayLike, width: int) -> str:
    """``values`` (finite) as at most ``width`` blocks, each the mean of its share.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
    '▁▂▃▄▅▆▇█'
    >>> sparkline([5.0, 5.0], 4), sparkline([], 4)
    ('▄▄', '')
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or width < 1:
        return ""
    means = np.array([part.mean() for part in np.array_split(array, min(width, array.size))])
    low, high = means.min(), means.max()
    if high <= low:
        return _BLOCKS[3] * len(means)
    levels = np.rint((means - low) / (high - low) * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)


def braille_plot(
    curves: Sequence[Curve], width: int, height: int
) -> tuple[list[list[tuple[str, int]]], tuple[float, float, float, float]]:
    """``height`` rows of ``width`` characters, each with the index of the curve drawn last in it (-1: none).

    Args:
        curves: frames and values of each, finite, frames ascending.
        width, height: in characters, of 2 by 4 dots each.

    Returns:
        The rows from the top, and the limits drawn to: first and last frame, lowest and highest value.
    """
    dots = np.zeros((height * 4, width * 2), dtype=bool)
    owner = np.full((height, width), -1)
    frames, values = np.concatenate([np.zeros((2, 0)), *curves], axis=1)
    left, right, low, high = (
        float(f(each)) if each.size else 0.0 for each in (frames, values) for f in (np.min, np.max)
    )
    right, high = max(right, left + 1), high if high > low else low + 1.0  # never an empty span
    for index, (x, y) in enumerate(curves):
        if len(x):
            columns, rows = (x - left) / (right - left) * (width * 2 - 1), (high - y) / (high - low) * (height * 4 - 1)
            # As many steps on each piece as dots on its longer side.
            sides = np.maximum(np.abs(np.diff(columns)), np.abs(np.diff(rows)))
            ends = np.concatenate(([0.0], np.ceil(np.maximum(sides, 1)).cumsum()))
            steps = np.arange(ends[-1] + 1)
            down, across = (np.rint(np.interp(steps, ends, places)).astype(int) for places in (rows, columns))
            dots[down, across] = True
            owner[down // 4, across // 2] = index
    cells = dots.reshape(height, 4, width, 2).transpose(0, 2, 1, 3)
    codes = 0x2800 + (cells * _DOTS).sum((2, 3))
    drawn = [[(chr(codes[r, c]), int(owner[r, c])) for c in range(width)] for r in range(height)]
    return drawn, (left, right, low, high)
