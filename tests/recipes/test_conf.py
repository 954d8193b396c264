"""Every choice of ``recipes/conf`` composes with the recipes that it is for, and the right one wins."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from torchrl_reg.analysis.documents import flat
from torchrl_reg.analysis.protocols import published_scores

RECIPES = Path(__file__).parents[2] / "recipes"
CONF = RECIPES / "conf"
METHODS = {path.stem for path in (CONF / "method").glob("*.yaml")} - {"m_dqn", "m_iqn"}
CONTINUOUS = {"iq", "pcl", "sac", "soft_q", "virel"}  # recipes for continuous actions; the others need discrete ones
REPLAY = METHODS | {"m_dqn", "m_iqn", "mirl", "q_learning"}  # Q-learning from replay
CONTINUOUS_ENVS = ("pendulum", "mountaincar_continuous", "multigoal", "mujoco/", "adroit/")
ENVS = [str(p.relative_to(CONF / "env").with_suffix("")) for p in sorted((CONF / "env").rglob("*.yaml"))]
#: Which recipes a preset is for, and an environment that goes with it.
PRESETS = {
    "cleanrl_classic": (METHODS | {"m_dqn"}, "env=mountaincar"),
    "cleanrl_pqn": ({"pqn"}, "env=acrobot"),
    "gallici2024": ({"pqn"}, "env=cartpole"),
    "gallici2024_minatar": ({"pqn"}, "env=minatar/breakout"),
    "dabney2018": (REPLAY, "env=atari"),
    "graumoya2019": ({"mirl"}, "env=atari"),
    "nachum2018": ({"pcl"}, "env=mujoco/hopper"),
    "hessel2018": (REPLAY, "env=atari"),
    "castro2018": (REPLAY, "env=atari"),
    "clark2025": (REPLAY, "env=atari"),
    "obando2021_minatar": (METHODS | {"m_dqn"}, "env=minatar/asterix"),
    "fellows2019": ({"virel"}, "env=mujoco/walker2d"),
    "haarnoja2017": ({"soft_q"}, "env=mujoco/hopper"),
    "vieillard2020": (REPLAY, "env=atari"),
    "tianshou_mujoco": ({"iq", "sac", "soft_q", "virel"}, "env=mujoco/reacher"),
    "xiao2019": ({"ments"}, "plan=atari env.game=Qbert algo.policy=somewhere"),
    "vieillard2020_cartpole": (REPLAY, "env=cartpole"),
    "vieillard2021_adroit": ({"iq"}, "env=adroit/door"),
    "vieillard2021_mujoco": ({"iq"}, "env=mujoco/hopper"),
}
#: Which policies a recipe can learn, where not all.
POLICIES = {
    "sac": ("gaussian", "flow", "multicategorical"),
    "soft_q": ("sampler", "flow"),
    "virel": ("gaussian", "flow"),
}


def fits(name: str, env: str) -> bool:
    return env.startswith(CONTINUOUS_ENVS) == (name in CONTINUOUS)


def choices(name: str) -> list[str]:
    """All that a recipe can be started with: an environment, a preset, a policy or a plan."""
    found = [f"+paper={preset} {more}" for preset, (names, more) in PRESETS.items() if name in names]
    if name == "ments":
        return found + [f"plan={path.stem}" for path in (CONF / "plan").glob("*.yaml")]
    if name in CONTINUOUS:
        policies = POLICIES.get(name, [path.stem for path in (CONF / "policy").glob("*.yaml")])
        found += [f"policy={policy}" for policy in policies]
    # Of q_learning.py and its methods one is enough for all environments.
    return found + ["" if name in METHODS else f"env={env}" for env in ENVS if fits(name, env)]


@pytest.mark.parametrize(
    "name", sorted(METHODS | CONTINUOUS | {"m_dqn", "m_iqn", "mirl", "q_learning", "pqn", "ments"})
)
def test_every_choice_composes(name, composed):
    assert set(PRESETS) == {path.stem for path in (CONF / "paper").glob("*.yaml")}
    for words in dict.fromkeys(choices(name)):
        settings = composed(f"{name} {words}")
        assert settings.env.max_episode_frames is not None  # resolved: config.yaml records what is in force


@pytest.mark.parametrize("name", ["m_dqn", "iq"])
def test_help_describes_every_setting_and_only_choices_that_fit(name, load, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help", "algo.tau=0.5"])
    load(name).main()
    text = capsys.readouterr().out
    assert text.startswith(load(name).__doc__.splitlines()[0])
    settings = [line.split() for line in text.partition("Choices")[0].splitlines() if line.startswith("  ")]
    settings = [words for words in settings if "=" in words[0]]
    assert len(settings) > 30 and all(len(words) > 1 for words in settings)
    assert "  algo.tau=0.5 " in text and "temperature, reward units" in text
    shown = set(re.split(r"[,\s]+", text.partition("Choices")[2].partition("Other words")[0]))
    assert shown & {*ENVS} == {env for env in ENVS if fits(name, env)}
    assert shown & {*PRESETS} == {preset for preset, (names, _) in PRESETS.items() if name in names}
    assert "+plan=" not in text and "net: null" not in text and ("net=" in text) == (name == "m_dqn")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dqn", "+paper=cleanrl_classic"),
        ("c51", "+paper=cleanrl_classic algo.adam_eps=7.8125e-5"),
        ("pqn", "+paper=cleanrl_pqn"),
    ],
)
def test_cleanrls_presets_have_the_settings_of_its_published_scores(name, more, composed):
    scores = [each for each in published_scores() if each.method == name and each.name.startswith("CleanRL")]
    for published in scores:
        settings = composed(f"{name} env={published.env} {more}")
        ours = flat(asdict(settings))
        assert {key: ours[key] for key in published.settings} == published.settings
        assert abs(settings.algo.total_frames - published.frames) <= 0.005 * published.frames
    assert len(scores) in (3, 6)


IQN = ("net.name", "net.num_quantiles", "algo.learning_rate")
GRID = ("net.num_atoms", "net.value_min", "net.value_max")


@pytest.mark.parametrize(
    ("words", "names", "values"),
    [  # the command line beats the preset beats the environment beats the recipe
        ("m_iqn env=atari", (*IQN, "algo.total_frames"), ("nature", 64, 5e-5, 10_000_000)),
        ("m_iqn env=atari +paper=vieillard2020", ("algo.total_frames",), (200_000_000,)),
        ("m_iqn +paper=vieillard2020 env=atari algo.learning_rate=3 net=mlp", IQN[::2], ("mlp", 3)),
        ("iq +paper=vieillard2021_mujoco env=mujoco/hopper", ("policy.name",), ("multicategorical",)),
        ("iq policy=flow +paper=vieillard2021_mujoco env=mujoco/hopper", ("policy.name",), ("flow",)),
        ("pcl +paper=nachum2018 env=mujoco/hopper", ("policy.name",), ("gaussian",)),
        ("pcl policy=flow +paper=nachum2018 env=mujoco/hopper", ("policy.name",), ("flow",)),
        ("ments plan=atari +paper=xiao2019", ("algo.num_simulations", "algo.tau"), (500, 0.8)),
        ("c51", GRID, (101, -100.0, 100.0)),
        ("c51 env=lunarlander", GRID, (101, -400.0, 400.0)),
        ("c51 env=minatar/breakout", GRID, (51, -10.0, 10.0)),
        ("c51 env=minatar/space_invaders", GRID, (101, -100.0, 100.0)),
        ("c51 env=minatar/space_invaders net.value_max=50", GRID, (101, -100.0, 50.0)),
        ("c51 env=atari", GRID, (51, -10.0, 10.0)),
    ],
)
def test_what_wins(words, names, values, composed):
    found = flat(asdict(composed(words)))
    assert tuple(found[name] for name in names) == values
