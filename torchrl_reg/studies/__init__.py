"""Figures and tables of the recipes that are studies of their own, from their record."""

from __future__ import annotations

import numpy as np

from torchrl_reg.analysis.charts import Line
from torchrl_reg.analysis.statistics import mean_interval


def mean_line(label: str, series: int, x: np.ndarray, values: np.ndarray) -> Line:
    """The mean of ``values [seeds, N]`` over ``x [N]`` with its 95% interval."""
    return Line(label, series, x, *mean_interval(values))


def cell(values: np.ndarray, form: str = ".4f") -> str:
    """Mean and 95% interval of ``values [seeds]`` as text."""
    # Adding 0 turns -0.0, which rounding makes of a tiny negative number, into 0.0.
    mean, low, high = (round(float(value), 9) + 0.0 for value in mean_interval(values))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"
