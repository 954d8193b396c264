"""What a sweep holds: its runs and their folders, from settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.sweep import SweepError, flat, override, planned_runs


def test_every_seed_of_every_point_of_every_variant():
    runs = planned_runs(
        {
            "recipe": "iq",
            "base": {"run": {"eval_episodes": 3}},
            "grid": {"env": ["mujoco/hopper", "mujoco/ant"]},
            "variants": [{"algo": {"alpha": 0.0}}, {"recipe": "sac"}],
            "seeds": [7, 9],
        }
    )
    assert len(runs) == 2 * 2 * 2
    assert runs[0].overrides == ("env=mujoco/hopper", "run.eval_episodes=3", "algo.alpha=0.0", "run.seed=7")
    assert [run.recipe for run in runs] == ["iq"] * 4 + ["sac"] * 4
    assert runs[-1].folder == "sac/mujoco-ant/default/seed=9"
    assert runs[1].folder == "iq/mujoco-hopper/algo.alpha=0.0/seed=9"


def test_a_variant_and_the_grid_win_over_the_base():
    (run,) = planned_runs(
        {"recipe": "iq", "base": {"algo.tau": 1, "env": "a"}, "grid": {"algo": {"tau": [2]}}, "seeds": 1}
    )
    assert "algo.tau=2" in run.overrides and "algo.tau=1" not in run.overrides
    (run,) = planned_runs({"recipe": "iq", "base": {"env": "a"}, "variants": [{"env": "b"}], "seeds": 1})
    assert run.folder.startswith("iq/b/")


def test_long_settings_are_cut_and_stay_distinct():
    grid = {"algo": {"name": ["x" * 200 + "a", "x" * 200 + "b"]}}
    first, second = planned_runs({"recipe": "iq", "grid": grid, "seeds": 1})
    assert first.folder != second.folder and len(first.folder) < 170


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({"recipe": "iq", "seeds": 1}, "sweep.grid must hold at least one list of settings"),
        ({"recipe": "iq", "base": {"run": {"seed": 1}}, "grid": {"x": [1]}}, "sweep.base.run.seed must not be set"),
        (
            {"recipe": "iq", "base": {"run.dir": "x"}, "grid": {"x": [1]}},
            "base.run.dir .* root= and name= choose",
        ),
        ({"recipe": "iq", "grid": {"run": {"dir": ["x"]}}, "seeds": 1}, "sweep.grid.run.dir must not be set"),
        ({"recipe": "iq", "variants": [{"run.seed": 1}], "seeds": 1}, r"sweep.variants\[0\].run.seed must not be set"),
        ({"recipe": "iq", "variants": [{"x": 1, "grid": {"x": [1]}}], "seeds": 1}, "got x in both"),
        (
            {"recipe": "iq", "grid": {"algo": {"tau": []}}, "seeds": 1},
            "sweep.grid.algo.tau must hold at least one value",
        ),
        (
            {"recipe": "iq", "grid": {"algo": {"tau": 3}}, "seeds": 1},
            "sweep.grid.algo.tau must be a list of values, got 3",
        ),
        ({"grid": {"env": ["a"]}, "seeds": 1}, "sweep.recipe must name a recipe"),
        ({"recipe": "iq", "grid": {"env": ["a"]}, "seeds": 0}, "sweep.seeds must be a number of seeds"),
        ({"recipe": "iq", "grid": {"env": ["a"]}, "seeds": [-1]}, "sweep.seeds must be a number of seeds"),
        ({"recipe": "iq", "grid": {"env": ["a", "a"]}, "seeds": 1}, "must differ, got iq/a/default/seed=0 twice"),
        ({"recipe": "iq", "grid": {"x": [1]}, "variants": [{"x": 2}], "seeds": 1}, "got x in both"),
    ],
)
def test_bad_sweeps_get_one_sentence(sweep, sentence):
    with pytest.raises(SweepError, match=sentence):
        planned_runs(sweep)


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


def test_the_shipped_sweeps_can_be_planned():
    yaml = pytest.importorskip("yaml")
    for path in (Path(__file__).parents[2] / "slurm" / "conf" / "sweep").glob("*.yaml"):
        sweep = yaml.safe_load(path.read_text())
        assert len(planned_runs(sweep)) >= 2, path
        assert sweep["question"].endswith("?") or "?" in sweep["question"], path
