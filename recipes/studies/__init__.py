"""Figures and tables of runs of ``mirl_grid.py`` and ``ments_trees.py``, and exact numbers in tables."""

from __future__ import annotations

import numpy as np

from torchrl_reg.lab.analysis.statistics import mean_interval


def cell(values: np.ndarray, form: str = ".4f") -> str:
    """Mean and 95% interval of ``values [seeds]`` as text."""
    # Adding 0 turns -0.0 (a rounded tiny negative number) into 0.0.
    mean, low, high = (round(float(value), 9) + 0.0 for value in mean_interval(values))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"
