"""Computes rliable_golden.json: rliable's numbers on two fixed sets of scores.

Run it in a separate environment, because rliable's dependency arch 7.2.0 does not import under pandas 3:
``pip install rliable==1.2.0 "pandas<3"`` (then arch 7.2.0, numpy 2.4.6, scipy 1.17.1), and
``python tests/lab/analysis/make_rliable_golden.py``. ``torchrl_reg`` is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("rliable_golden.json")
THRESHOLDS = [-1.0, 0.0, 0.5, 1.0, 2.0]


def scores() -> tuple[np.ndarray, np.ndarray]:
    """``[7 runs, 6 tasks]``, and ``[5 runs, 6 tasks]`` with ties; not random, as numpy's generators may change."""
    run, task = np.arange(7)[:, None], np.arange(6)[None]
    x = np.sin(12.9 * run + 78.2 * task + 1) * (1 + task / 2) + task / 3
    run = np.arange(5)[:, None]
    return x, np.round(np.cos(7.1 * run + 3.3 * task) * 1.5 + task / 4, 1)


def rliable_numbers(resamples: int) -> dict[str, list]:
    """``{"IQM of x": [value, low, high], ...}`` by rliable."""
    from rliable import library, metrics

    aggregates = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    x, y = scores()
    found: dict[str, list] = {}
    np.random.seed(0)  # rliable draws from numpy's global generator
    for name, aggregate in aggregates.items():
        for which, data in (("x", x), ("y", y)):
            value, ends = library.get_interval_estimates(
                {"": data}, lambda runs, aggregate=aggregate: np.array([aggregate(runs)]), reps=resamples
            )
            found[f"{name} of {which}"] = [float(value[""][0]), *ends[""][:, 0].tolist()]
    value, ends = library.get_interval_estimates(
        {"": [x, y]}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=resamples
    )
    found["probability of improvement"] = [float(value[""][0]), *ends[""][:, 0].tolist()]
    value, ends = library.create_performance_profile({"": x}, THRESHOLDS, reps=resamples)
    found["profile of x"] = [value[""].tolist(), *ends[""].tolist()]
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(rliable_numbers(20_000), indent=1) + "\n")
