"""Every choice of ``recipes/conf`` composes with the recipes that it is for, and the right one wins."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import make_env
from torchrl_reg.lab import EpsilonSchedule, LinearSchedule
from torchrl_reg.lab.analysis.documents import flat
from torchrl_reg.lab.analysis.protocols import published_scores
from torchrl_reg.lab.cli.groups import environments
from torchrl_reg.modules import q_network, quantile_network

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
#: In which Rainbow, whose noise explores, must have no epsilon.
RAINBOW_PRESETS = ("cleanrl_classic", "hessel2018 env=atari", "obando2021_minatar env=minatar/asterix")
#: Which policies a recipe can learn, where not all.
POLICIES = {
    "sac": ("gaussian", "flow", "multicategorical"),
    "soft_q": ("sampler", "flow"),
    "virel": ("gaussian", "flow"),
}


def fits(name: str, env: str) -> bool:
    return env == "gym" or env.startswith(CONTINUOUS_ENVS) == (name in CONTINUOUS)


def choices(name: str) -> list[str]:
    """All that a recipe can be started with: an environment, a preset, a policy or a plan."""
    found = [f"+paper={preset} {more}" for preset, (names, more) in PRESETS.items() if name in names]
    if name == "ments":
        return found + [f"plan={path.stem}" for path in (CONF / "plan").glob("*.yaml")]
    if name in CONTINUOUS:
        policies = POLICIES.get(name, [path.stem for path in (CONF / "policy").glob("*.yaml")])
        found += [f"policy={policy}" for policy in policies]
    # Of q_learning.py and its methods one is enough for all environments.
    games = {"gym": " env.game=FrozenLake-v1" if name not in CONTINUOUS else " env.game=Pendulum-v1"}
    return found + ["" if name in METHODS else f"env={env}{games.get(env, '')}" for env in ENVS if fits(name, env)]


@pytest.mark.parametrize(
    "name", sorted(METHODS | CONTINUOUS | {"m_dqn", "m_iqn", "mirl", "q_learning", "pqn", "ments"})
)
def test_every_choice_composes(name, composed):
    assert set(PRESETS) == {path.stem for path in (CONF / "paper").glob("*.yaml")}
    for words in dict.fromkeys(choices(name)):
        settings = composed(f"{name} {words}")
        assert settings.env.max_episode_frames is not None  # resolved: config.yaml records what is in force


@pytest.mark.parametrize(
    ("name", "env", "presets"),
    [
        ("m_dqn", "cartpole", "cleanrl_classic vieillard2020_cartpole"),
        ("m_dqn", "atari", "castro2018 clark2025 dabney2018 hessel2018 vieillard2020"),
        ("iq", "mujoco/hopper", "tianshou_mujoco vieillard2021_mujoco"),
    ],
)
def test_help_describes_every_setting_and_only_choices_that_fit(name, env, presets, load, monkeypatch, capsys):
    for preset, (_, more) in PRESETS.items():
        family = re.search(r"(?:env|plan)=(\w+)", more)[1]
        assert family in environments(CONF / f"paper/{preset}.yaml"), f"{preset}.yaml must say: use with env={family}"
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help", "algo.tau=0.5", f"env={env}"])
    load(name).main()
    text = capsys.readouterr().out
    assert text.startswith(load(name).__doc__.splitlines()[0])
    settings = [line.split() for line in text.partition("Choices")[0].splitlines() if line.startswith("  ")]
    settings = [words for words in settings if "=" in words[0]]
    assert len(settings) > 30 and all(len(words) > 1 for words in settings)
    assert "  algo.tau=0.5 " in text and "temperature, reward units" in text
    shown = set(re.split(r"[,\s]+", text.partition("Choices")[2].partition("Other words")[0]))
    assert shown & {*ENVS} == {env for env in ENVS if fits(name, env)}
    assert shown & {*PRESETS} == set(presets.split())
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


def built(settings: Any) -> Any:
    """The network that ``settings`` describe."""
    values = settings.net.num_atoms if getattr(settings, "head", {}).get("name") == "categorical" else 1
    quantiles = getattr(settings, "head", {}).get("name") == "implicit_quantile"
    env = make_env(settings.env, 1)
    return quantile_network(settings.net, env) if quantiles else q_network(settings.net, env, values)


@pytest.mark.parametrize(
    ("words", "updates", "parameters"),
    [
        ("pqn env=cartpole +paper=gallici2024", 15_616, 68_610),
        ("pqn env=minatar/breakout +paper=gallici2024_minatar env.minimal_actions=false", 156_224, 132_854),
        ("pqn env=cartpole +paper=cleanrl_pqn", 15_616, 11_342),  # 976 iterations of 16
    ],
)
def test_pqn_as_published_to_the_digit(words, updates, parameters, composed):
    settings = composed(words)
    algo, rows = settings.algo, settings.algo.num_envs * settings.algo.collect_steps
    assert algo.batch_size == 128 and algo.total_frames % rows == 0
    assert algo.total_frames // rows * algo.epochs * (rows // algo.batch_size) == updates
    assert sum(parameter.numel() for parameter in built(settings).parameters()) == parameters


#: Of the two Rainbows and of Beyond The Rainbow: settings (algorithms_next.md 2b, 3b), and the parameters of 4 actions.
RAINBOWS = {
    "rainbow +paper=hessel2018": (
        {"priority_exponent": 0.5, "importance_exponent": 0.4, "importance_exponent_end": 1.0, "double_dqn": True},
        {"learning_rate": 6.25e-5, "adam_eps": 0.005 / 32, "max_grad_norm": 10.0, "n_steps": 3, "eps_off_frames": 0},
        # Convolutions of 3136 features; each stream has 512 hidden units; sigmas beside all that is noisy.
        77_984 + 2 * (2 * (3136 + 1) * 512 + (512 + 1) * 51 * 5),
    ),
    "rainbow_compact +paper=castro2018": (
        {"priority_exponent": 0.5, "importance_exponent": 0.5, "importance_exponent_end": None, "double_dqn": False},
        {"learning_rate": 6.25e-5, "adam_eps": 1.5e-4, "max_grad_norm": None, "n_steps": 3, "eps_off_frames": None},
        77_984 + (7744 + 1) * 512 + (512 + 1) * 51 * 4,
    ),
    "btr +paper=clark2025": (
        {"priority_exponent": 0.2, "importance_exponent": 0.0, "importance_exponent_end": None, "gamma": 0.997},
        {"learning_rate": 1e-4, "adam_eps": 0.005 / 256, "max_grad_norm": 10.0, "n_steps": 3, "batch_size": 256},
        389_024 + 149_760 + 2 * (2 * (2304 + 1) * 512 + (512 + 1) * 5),
    ),
}


@pytest.mark.parametrize("words", RAINBOWS)
def test_rainbows_as_published_to_the_digit(words, composed):
    one, other, parameters = RAINBOWS[words]
    settings = composed(f"{words} env=atari")
    expected = one | other | {"weight_reduction": "mean"}
    assert {name: getattr(settings.algo, name) for name in expected} == expected
    assert sum(parameter.numel() for parameter in built(settings).parameters()) == parameters


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # .01 + .99 exp(-transitions / 2M), off half-way; four frames a transition
        (
            "btr +paper=clark2025 env=atari",
            {0: 1.0, 8e6: 0.3742, 16e6: 0.1440, 40e6: 0.0167, 1e8 - 1: 0.01, 1e8: 0.0, 2e8: 0.0},
        ),
        ("rainbow_compact +paper=castro2018 env=atari", {80_000: 1.0, 580_000: 0.505, 1_080_000: 0.01, 2e8: 0.01}),
        ("dqn +paper=obando2021_minatar env=minatar/asterix", {1_000: 1.0, 126_000: 0.505, 251_000: 0.01}),
        ("pqn +paper=gallici2024", {0: 1.0, 49_971: 0.6, 99_942: 0.2, 499_712: 0.2}),
        *((f"rainbow +paper={paper}", dict.fromkeys((0, 5_000, 1e6), 0.0)) for paper in RAINBOW_PRESETS),
    ],
)
def test_epsilon_of_the_presets(words, expected, composed):
    algo = composed(words).algo
    module = EGreedyModule(Categorical(2), eps_init=algo.eps_start, eps_end=algo.eps_end)
    if words.startswith("pqn"):
        schedule: Any = LinearSchedule(module.eps.fill_, algo.eps_start, algo.eps_end, algo.eps_frames)
    else:
        schedule = EpsilonSchedule(module, algo)
    run, found = SimpleNamespace(frames=0), {0: module.eps.item()}
    for run.frames in sorted(expected)[0 if 0 not in expected else 1 :]:
        schedule.step(run)
        found[run.frames] = module.eps.item()
    assert {frames: found[frames] for frames in expected} == pytest.approx(expected, abs=1e-4)


IQN = ("net.name", "net.num_quantiles", "algo.learning_rate")
OURS = ("algo.n_steps", "net.layer_norm", "algo.total_frames")
GRID = ("net.num_atoms", "net.value_min", "net.value_max")


@pytest.mark.parametrize(
    ("words", "names", "values"),
    [  # the command line beats the preset beats the environment beats the recipe
        ("m_iqn env=atari", (*IQN, "algo.total_frames"), ("nature", 64, 5e-5, 10_000_000)),
        ("m_iqn env=atari +paper=vieillard2020", ("algo.total_frames",), (200_000_000,)),
        ("m_iqn +paper=vieillard2020 env=atari algo.learning_rate=3 net=mlp", IQN[::2], ("mlp", 3)),
        ("m_dqn", OURS, (3, "image", 80_000)),  # searched for on CartPole, and for nothing else
        ("m_dqn env=acrobot", OURS, (1, "none", 60_000)),
        ("m_dqn env=minatar/breakout algo.n_steps=2", OURS, (2, "none", 1_000_000)),
        ("m_dqn env=cartpole +paper=cleanrl_classic", OURS, (1, "none", 500_000)),
        ("m_dqn +bootstrap=n_step env=acrobot", OURS, (3, "none", 60_000)),
        ("m_iqn", OURS, (3, "none", 100_000)),
        ("m_iqn env=acrobot", OURS, (1, "none", 80_000)),
        ("q_learning +method=m_dqn", OURS, (1, "none", 60_000)),
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
