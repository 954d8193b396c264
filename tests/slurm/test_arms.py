"""What a sweep compares: every shipped one is composed, and its arms may differ only where its file says so."""

from __future__ import annotations

import dataclasses
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sweep_harness import ROOT, SLURM, run_launch

from slurm.arms import compared_runs, covering, differences, table
from slurm.sweep import flat, named_settings, planned_runs

yaml = pytest.importorskip("yaml")
hydra = pytest.importorskip("hydra")
TAUS = (1e-4, 1e-3, 0.01, 0.1, 1.0)
SHIPPED = sorted(path.stem for path in (SLURM / "conf/sweep").glob("*.yaml"))


#: Dopamine's.
RAINBOW = "c51 algo.importance_exponent=0.5 algo.n_steps=3 algo.priority_exponent=0.5 algo.weight_reduction=mean"


def sweep_of(name: str) -> dict[str, Any]:
    """A shipped sweep."""
    return yaml.safe_load((SLURM / f"conf/sweep/{name}.yaml").read_text())


@cache
def config_of(recipe: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from torchrl_reg.lab.cli.command_line import as_config
    from torchrl_reg.lab.cli.overrides import as_hydra_reads

    config_class = importlib.import_module(f"recipes.{recipe}").Config  # its schema is in Hydra's store from then on
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "recipes/conf")):
        words = as_hydra_reads(overrides, config_class)
        config = as_config(hydra.compose(config_name=recipe, overrides=words), config_class)
    return flat(dataclasses.asdict(config))


def configs_of(name: str) -> list[dict[str, Any]]:
    (runs,) = compared_runs(planned_runs(sweep_of(name))).values()
    return [config_of(run.recipe, run.overrides) for run in runs]


def unnamed(sweep: dict[str, Any]) -> list[str]:
    found = []
    for arms in compared_runs(planned_runs(sweep)).values():
        configs = {run.arm: config_of(run.recipe, run.overrides) for run in arms}
        found += [d.setting for d in differences(configs, named_settings(sweep)) if not d.named]
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_asks_a_question_and_its_arms_differ_only_where_its_file_says_so(name: str) -> None:
    sweep = sweep_of(name)
    assert "?" in sweep["question"] and len(planned_runs(sweep)) >= 2
    assert unnamed(sweep) == []


def test_a_confounded_sweep_is_seen() -> None:
    """Two presets side by side, as this sweep once had them."""
    variants = [{"+method": "m_iqn"}, {"+method": "iqn", "+paper": "dabney2018"}]
    sweep = sweep_of("atari60_m_iqn") | {"grid": {}, "variants": variants}
    expected = {"env.sticky_actions", "env.noop_max", "net.padding", "algo.target_period_updates", "algo.eps_frames"}
    assert expected <= set(unnamed(sweep))


@pytest.mark.parametrize(
    ("sweep", "arms"),
    [
        ("atari60_m_iqn", {"m_iqn", "iqn", "m_dqn", "dqn", "al_dqn", "c51", RAINBOW}),
        ("mirl_atari19", {f"mirl algo.method={method}" for method in ("dqn", "sql", "sql_m", "mirl")}),
        ("iq_mujoco_tau", {f"iq algo.alpha={a} algo.tau={t}" for a in (0.0, 0.9) for t in TAUS}),
    ],
)
def test_arms_of_the_papers_are_there(sweep: str, arms: set[str]) -> None:
    assert {run.arm for run in planned_runs(sweep_of(sweep))} == arms


def test_the_residual_arms_of_iq_mujoco_are_those_of_the_paper() -> None:
    configs = configs_of("iq_mujoco")
    residual = [(c["algo.tau"], c["algo.alpha"]) for c in configs if c.get("algo.residual")]
    assert residual == [(1e-4, 0.0), (1e-4, 0.9)] and len(configs) == 6
    assert {config["algo.learning_rate"] for config in configs_of("iq_adroit")} == {3e-5}


def test_a_group_names_its_settings_and_a_preset_does_not() -> None:
    configs = {
        "a": {"policy.name": "x", "net.n": 1, "run.seed": 0},
        "b": {"policy.name": "y", "net.n": 2, "run.seed": 1},
    }
    found = differences(configs, {"policy", "+paper"})
    assert [(d.setting, d.named) for d in found] == [("policy.name", True), ("net.n", False)]
    assert table(found, "atari", 2).splitlines() == [
        "settings in which the 2 arms differ on atari (! not named in the sweep):",
        "! net.n        1 (a); 2 (b)",
        "  policy.name  x, y",
    ]


def test_a_variant_with_a_grid_of_its_own() -> None:
    sweep = {"recipe": "iq", "grid": {"env": ["a/b", "a/c"]}, "seeds": 1}
    sweep["variants"] = [{"recipe": "sac"}, {"grid": {"algo": {"tau": [1, 2]}}, "algo": {"alpha": 0.5}}]
    runs = planned_runs(sweep)
    assert [run.arm for run in runs[1:4]] == ["sac", *(f"iq algo.alpha=0.5 algo.tau={tau}" for tau in (1, 2))]
    assert len(runs) == 6 and {"env", "recipe", "algo.tau", "algo.alpha"} <= named_settings(sweep)
    assert {name: [run.folder for run in arms] for name, arms in compared_runs(runs).items()} == {
        "a": ["sac/a-b/default/seed=0"] + [f"iq/a-b/algo.alpha=0.5,algo.tau={tau}/seed=0" for tau in (1, 2)]
    }


def test_few_runs_hold_every_override_of_every_recipe() -> None:
    grid = {"algo.tau": [1, 2], "algo.alpha": [0.5, 0.9]}
    runs = planned_runs({"recipe": "iq", "grid": grid, "variants": [{}, {"recipe": "sac"}], "seeds": 3})
    chosen = covering(runs)
    assert [(run.recipe, run.overrides[:2]) for run in chosen] == [
        (recipe, (f"algo.tau={tau}", f"algo.alpha={alpha}"))
        for recipe in ("iq", "sac")
        for tau, alpha in ((1, 0.5), (1, 0.9), (2, 0.5))
    ]


@pytest.mark.slow  # one process for each arm
def test_a_dry_run_tells_what_differs(tmp_path: Path) -> None:
    more = ("sweep.variants=[{algo.gamma: 0.9},{run.eval_episodes: 3}]", "sweep.grid.env=[cartpole]", "sweep.seeds=1")
    done = run_launch("sweep=dqn_versus_m_dqn", "cluster=local", "dry=true", f"root={tmp_path}", *more)
    assert done.returncode == 0, done.stderr
    told = done.stdout[done.stdout.index("settings in which") :].splitlines()
    assert told[0].startswith("settings in which the 4 arms differ on cartpole")
    assert [line.split() for line in told[1:]] == [["run.eval_episodes", "10,", "3"], ["algo.gamma", "0.9,", "0.99"]]
