"""Arms of sweeps: every shipped one is composed, and its arms differ only in the settings named in its file."""

from __future__ import annotations

import dataclasses
import importlib
import re
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
GLOROTS = "net.initialization=variance_scaling"
C51 = f"c51 algo.adam_eps=0.0003125 algo.learning_rate=0.00025 {GLOROTS}"
RAINBOW = (
    "c51 algo.adam_eps=0.00015 algo.importance_exponent=0.5 algo.learning_rate=6.25e-05 algo.n_steps=3"
    f" algo.priority_exponent=0.5 algo.weight_reduction=mean {GLOROTS}"
)
#: Of the sweeps that a source sets: how many runs.
RUNS = {
    **{"atari60_m_iqn": 60 * 7 * 3, "atari60_ablation": 60 * 5 * 3, "mirl_atari19": 19 * 4 * 3},
    **{"ments_atari5_dqn": 5, "ments_atari5": 5 * 2, "virel_mujoco": 5 * 4 * 5, "soft_q_mujoco": 5 * 3},
    **{"iq_mujoco": 5 * 7 * 5, "iq_mujoco_tau": 5 * 10 * 3, "iq_mujoco_alpha": 5 * 5 * 3, "iq_mujoco_pcl": 5 * 10 * 3},
    **{"iq_adroit": 3 * 3 * 3, "iq_adroit_tau": 3 * 8 * 3, "iq_adroit_alpha": 3 * 5 * 3},
    **{"dqn_minatar": 5 * 2 * 5, "rainbow_minatar": 2 * 10 * 5, "vieillard2020_cartpole": 5 * 10},
    **{"munchausen_ablation": 90, "action_gap": 20, "dopamine_mujoco": 18, "tianshou_sac": 200},
    **{"cleanrl_classic": 270, "cleanrl_pqn": 150, "pqn_minatar": 50},
}
#: An arm of a sweep -> the preset whose settings it has, and what else it sets.
AS_PRESETS = [
    ("atari60_m_iqn", C51, "q_learning +method=c51 env=atari +paper=castro2018_c51", ""),
    ("atari60_m_iqn", RAINBOW, "q_learning +method=rainbow_compact env=atari +paper=castro2018", ""),
    (
        "atari60_ablation",
        "dqn algo.adam_eps=1e-05 algo.learning_rate=0.00025 algo.optimizer=rmsprop",
        "q_learning +method=dqn env=atari +paper=castro2018_dqn",
        "",
    ),
    (
        "ments_atari5_dqn",
        "dqn",
        "q_learning +method=dqn env=atari +paper=vieillard2020",
        "env.sticky_actions env.noop_max",
    ),
    (
        "dqn_minatar",
        "dqn",
        "q_learning +method=dqn env=minatar/asterix +paper=young2019_minatar",
        "algo.total_frames algo.learning_rate",
    ),
    ("virel_mujoco", "virel", "virel env=mujoco/hopper +paper=fellows2019", "algo.total_frames env.max_episode_frames"),
    ("soft_q_mujoco", "soft_q", "soft_q env=mujoco/hopper +paper=haarnoja2017", ""),
    ("iq_mujoco", "iq algo.alpha=0.9", "iq env=mujoco/hopper +paper=vieillard2021_mujoco", "algo.total_frames"),
    ("iq_adroit", "iq algo.alpha=0.9", "iq env=adroit/door +paper=vieillard2021_adroit", ""),
    ("iq_mujoco", "sac", "sac env=mujoco/hopper +paper=vieillard2021_sac", "algo.total_frames"),
    ("iq_adroit", "sac", "sac env=adroit/door +paper=vieillard2021_sac", "algo.learning_rate"),
]


def sweep_of(name: str) -> dict[str, Any]:
    """A shipped sweep."""
    return yaml.safe_load((SLURM / f"conf/sweep/{name}.yaml").read_text())


@cache
def config_of(recipe: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from torchrl_reg.lab.cli.command_line import as_config
    from torchrl_reg.lab.cli.overrides import quoted_overrides

    config_class = importlib.import_module(f"recipes.{recipe}").Config  # its schema is in Hydra's store from then on
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "recipes/conf")):
        words = quoted_overrides(overrides, config_class)
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


@pytest.mark.parametrize("name", RUNS)
def test_a_sweep_has_as_many_runs_as_its_source_has_cells(name: str) -> None:
    assert len(planned_runs(sweep_of(name))) == RUNS[name]


def test_sweeps_of_the_sources_figures_are_there() -> None:
    text = (ROOT / "torchrl_reg/METHODS.md").read_text().partition("## The sources' systems and figures")[2]
    named = set(re.findall(r"sweep=(\w+)", text))
    assert named <= {*RUNS} and named <= {*SHIPPED} and len(named) >= 12


@pytest.mark.parametrize(("name", "arm", "words", "own"), AS_PRESETS)
def test_an_arm_has_the_settings_of_its_papers_preset(name: str, arm: str, words: str, own: str) -> None:
    """Except ``own``, named in the sweep, and settings without an effect on learning."""
    run = next(run for run in planned_runs(sweep_of(name)) if run.arm == arm or run.arm.startswith(f"{arm} "))
    recipe, *overrides = words.split()
    ours, theirs = config_of(run.recipe, run.overrides), config_of(recipe, tuple(overrides))
    unread = {"method", "env.game", "net.quantile_initialization", *(key for key in ours if key.startswith("run."))}
    differ = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} - unread
    if recipe == "q_learning":  # of implicit quantiles
        differ -= {"net.num_quantiles", "net.num_target_quantiles", "net.num_policy_quantiles"}
    assert differ == set(own.split())


def test_a_confounded_sweep_is_seen() -> None:
    """Two presets side by side, as this sweep once had them."""
    variants = [{"+method": "m_iqn"}, {"+method": "iqn", "+paper": "dabney2018"}]
    sweep = sweep_of("atari60_m_iqn") | {"grid": {}, "variants": variants}
    expected = {"env.sticky_actions", "env.noop_max", "net.padding", "algo.target_period_updates", "algo.eps_frames"}
    assert expected <= set(unnamed(sweep))


@pytest.mark.parametrize(
    ("sweep", "arms"),
    [
        ("atari60_m_iqn", {"m_iqn", "iqn", "m_dqn", "dqn", "al_dqn", C51, RAINBOW}),
        ("mirl_atari19", {f"mirl algo.method={method}" for method in ("dqn", "sql", "sql_m", "mirl")}),
        ("iq_mujoco_tau", {f"iq algo.alpha={a} algo.tau={t}" for a in (0.0, 0.9) for t in TAUS}),
    ],
)
def test_arms_of_the_papers_are_there(sweep: str, arms: set[str]) -> None:
    assert {run.arm for run in planned_runs(sweep_of(sweep))} == arms


def test_the_residual_arms_of_iq_mujoco_are_those_of_the_paper() -> None:
    configs = configs_of("iq_mujoco")
    residual = [(c["algo.tau"], c["algo.alpha"]) for c in configs if c.get("algo.residual")]
    assert residual == [(1e-4, 0.0), (1e-4, 0.9)] and len(configs) == 7
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
