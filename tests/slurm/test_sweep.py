"""Runs of a sweep and their folders, from settings alone."""

from __future__ import annotations

import pytest

from slurm.sweep import flat, override, planned_runs
from torchrl_reg.lab.errors import UserError


def test_every_seed_of_every_point_of_every_variant():
    grid, variants = {"env": ["mujoco/hopper", "mujoco/ant"]}, [{"algo": {"alpha": 0.0}}, {"recipe": "sac"}]
    base = {"run": {"eval_episodes": 3}}
    runs = planned_runs({"recipe": "iq", "base": base, "grid": grid, "variants": variants, "seeds": [7, 9]})
    assert runs[0].overrides == ("env=mujoco/hopper", "run.eval_episodes=3", "algo.alpha=0.0", "run.seed=7")
    assert [run.recipe for run in runs] == ["iq"] * 4 + ["sac"] * 4
    assert runs[-1].folder == "sac/mujoco-ant/default/seed=9"
    assert runs[1].folder == "iq/mujoco-hopper/algo.alpha=0.0/seed=9"


def test_a_variant_and_the_grid_win_over_the_base():
    sweep = {"recipe": "iq", "base": {"algo.tau": 1, "env": "a"}, "seeds": 1}
    (run,) = planned_runs(sweep | {"grid": {"algo": {"tau": [2]}}, "variants": [{"env": "b"}]})
    assert run.overrides == ("env=b", "algo.tau=2", "run.seed=0") and run.folder == "iq/b/algo.tau=2/seed=0"


def test_long_settings_are_cut_and_stay_distinct():
    grid = {"algo": {"name": ["x" * 200 + "a", "x" * 200 + "b"]}}
    first, second = planned_runs({"recipe": "iq", "grid": grid, "seeds": 1})
    assert first.folder != second.folder and len(first.folder) < 170


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"grid": {}}, "sweep.grid must hold at least one list of settings"),
        ({"base": {"run": {"seed": 1}}}, "sweep.base.run.seed must not be set"),
        ({"base": {"run.dir": "x"}}, "base.run.dir .* root= and name= choose"),
        ({"grid": {"run": {"dir": ["x"]}}}, "sweep.grid.run.dir must not be set"),
        ({"variants": [{"run.seed": 1}]}, r"sweep.variants\[0\].run.seed must not be set"),
        ({"variants": [{"x": 1, "grid": {"x": [1]}}]}, "got x in both"),
        ({"variants": [{"env": 2}]}, "got env in both"),
        ({"variants": [5]}, r"sweep.variants\[0\] must hold settings \(name: value\), got 5"),
        ({"variants": [{"grid": 5}]}, r"sweep.variants\[0\] must hold settings"),
        ({"grid": {"algo": {"tau": []}}}, "sweep.grid.algo.tau must hold at least one value"),
        ({"grid": {"algo": {"tau": 3}}}, "sweep.grid.algo.tau must be a list of values, got 3"),
        ({"recipe": None}, "sweep.recipe must name a recipe"),
        ({"seeds": 0}, "sweep.seeds must be a number of seeds"),
        ({"seeds": [-1]}, "sweep.seeds must be a number of seeds"),
        ({"grid": {"env": ["a", "a"]}}, "must differ, got iq/a/default/seed=0 twice"),
    ],
)
def test_bad_sweeps_get_one_sentence(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        planned_runs({"recipe": "iq", "grid": {"env": ["a"]}, "seeds": 1} | changed)


def test_what_is_written_last_wins_dotted_or_nested():
    assert flat({"algo.tau": 1, "algo": {"tau": 2, "alpha": 3}}) == {"algo.tau": 2, "algo.alpha": 3}


@pytest.mark.parametrize(
    "value", ["plain", "a=b,c", "it's (odd)", "back\\slash x", None, True, 1e-4, [64, 64], ["a b", None], "3", "x:y"]
)
def test_overrides_are_read_back_by_hydra(value):
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    (parsed,) = parser.parse_overrides([override("key", value)])
    read = parsed.value()
    assert (str(read) if isinstance(value, str) else read) == value
