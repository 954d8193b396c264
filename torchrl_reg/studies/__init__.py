"""Figures and tables of the recipes that are studies of their own, from their record."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from torchrl_reg.analysis.statistics import mean_interval


def draw_band(axes: Axes, x: np.ndarray, values: np.ndarray, look: dict, label: str = "") -> None:
    """Draws the mean of ``values [seeds, N]`` over ``x [N]`` with its 95% interval."""
    mean, low, high = mean_interval(values)
    axes.plot(x, mean, linewidth=1.4, label=label, **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    plain(axes)


def plain(axes: Axes) -> None:
    """Takes half the frame away, and makes the ticks small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def cell(values: np.ndarray, form: str = ".4f") -> str:
    """Mean and 95% interval of ``values [seeds]`` as text."""
    # Adding 0 turns -0.0, which rounding makes of a tiny negative number, into 0.0.
    mean, low, high = (round(float(value), 9) + 0.0 for value in mean_interval(values))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"
