"""Which runs of a sweep are checked before it is submitted."""

from __future__ import annotations

from slurm.recipe_settings import covering
from slurm.sweep import planned_runs


def test_few_runs_hold_every_override_of_every_recipe() -> None:
    grid = {"algo.tau": [1, 2], "algo.alpha": [0.5, 0.9]}
    runs = planned_runs({"recipe": "iq", "grid": grid, "variants": [{}, {"recipe": "sac"}], "seeds": 3})
    chosen = covering(runs)
    assert [(run.recipe, run.overrides[:2]) for run in chosen] == [
        (recipe, (f"algo.tau={tau}", f"algo.alpha={alpha}"))
        for recipe in ("iq", "sac")
        for tau, alpha in ((1, 0.5), (1, 0.9), (2, 0.5))
    ]
