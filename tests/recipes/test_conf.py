"""Every choice of ``recipes/conf`` composes with the recipes that it is for, and the right one wins."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import make_env
from torchrl_reg.lab import EpsilonSchedule, LinearSchedule
from torchrl_reg.lab.analysis.protocols import published_scores
from torchrl_reg.lab.cli.groups import environments
from torchrl_reg.lab.documents import flat
from torchrl_reg.modules import q_network, quantile_network

RECIPES = Path(__file__).parents[2] / "recipes"
CONF = RECIPES / "conf"
#: Every preset beside its source: command -> setting -> [value, source, status].
TABLE = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())
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
    "castro2018_c51": (REPLAY, "env=atari"),
    "castro2018_dqn": (REPLAY, "env=atari"),
    "clark2025": (REPLAY, "env=atari"),
    "obando2021_minatar": (METHODS | {"m_dqn"}, "env=minatar/asterix"),
    "young2019_minatar": (METHODS | {"m_dqn"}, "env=minatar/asterix"),
    "fellows2019": ({"virel"}, "env=mujoco/walker2d"),
    "haarnoja2017": ({"soft_q"}, "env=mujoco/hopper"),
    "haarnoja2017_multigoal": ({"soft_q"}, "env=multigoal"),
    "vieillard2020": (REPLAY, "env=atari"),
    "tianshou_mujoco": ({"iq", "sac", "soft_q", "virel"}, "env=mujoco/reacher"),
    "xiao2019": ({"ments"}, "plan=atari env.game=Qbert algo.policy=somewhere"),
    "vieillard2020_cartpole": (REPLAY, "env=cartpole"),
    "vieillard2021_adroit": ({"iq"}, "env=adroit/door"),
    "vieillard2021_mujoco": ({"iq"}, "env=mujoco/hopper"),
    "vieillard2021_sac": ({"sac"}, "env=adroit/door"),
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
    method = "+method=dqn " if name == "q_learning" else ""  # which its presets need
    found = [f"{method}+paper={preset} {more}" for preset, (names, more) in PRESETS.items() if name in names]
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
        ("m_dqn", "atari", "castro2018 castro2018_c51 castro2018_dqn clark2025 dabney2018 hessel2018 vieillard2020"),
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
    shown = set(re.split(r"[,\s]+", text.partition("Choices")[2].partition("Other options")[0]))
    assert shown & {*ENVS} == {env for env in ENVS if fits(name, env)}
    assert shown & {*PRESETS} == set(presets.split())
    assert "+plan=" not in text and "net: null" not in text and ("net=" in text) == (name == "m_dqn")


#: Settings without a say in what is learnt, and the values at which a feature is off.
OFF: dict[str, Any] = {
    **{
        f"algo.{name}": False for name in ("random_until_learning", "clip_rewards", "double_dqn", "residual", "unified")
    },
    **{
        f"algo.{name}": None
        for name in ("max_grad_norm", "eps_starts_frames", "eps_off_frames", "importance_exponent_end")
    },
    **{f"algo.{name}": 0 for name in ("priority_exponent", "importance_exponent", "max_depth")},
    **{f"algo.{name}": None for name in ("target_entropy", "below")},
    **{f"algo.{name}": [] for name in ("compose", "prior_keys")},
    **{"algo.eps_decay": "linear", "algo.explore": "greedy", "algo.delay_value": True, "algo.reward_scale": 1},
    **{"algo.baseline": "logsumexp", "algo.mode": "td", "algo.weight_reduction": "normalized", "algo.tau_max": 1e30},
    **{"net.layer_norm": "none", "net.noise_sigma": 0, "net.dueling": "none", "net.quantile_initialization": ""},
    **{f"net.{name}": [] for name in ("input_low", "input_high")},
    **{f"head.{name}": False for name in ("reuse_quantiles", "share_fractions", "absolute_priority")},
    **{f"algo.{name}": False for name in ("reuse_quantiles", "share_fractions")},
    **{"shaping.online": False, "algo.num_emulators": 1},
}
#: What only these choices of a group read.
READ_BY = {
    "net": {
        **dict.fromkeys(("num_atoms", "value_min", "value_max"), ("categorical",)),
        **dict.fromkeys(("padding",), ("nature", "minatar")),
        **dict.fromkeys(("spectral_norm", "impala_width"), ("impala",)),
        **dict.fromkeys(("num_cosines", "first_cosine", "num_target_quantiles"), ("implicit_quantile",)),
        **{"num_policy_quantiles": ("implicit_quantile",), "num_quantiles": ("implicit_quantile", "quantile")},
        **{"image_divisor": ("minatar",), "quantile_initialization": ("implicit_quantile",)},
    },
    "policy": {
        **{"num_bins": ("multicategorical",), "skip": ("sampler",)},
        **dict.fromkeys(("scale_mapping", "scale_lb"), ("gaussian",)),
        **dict.fromkeys(("head_cells", "condition", "flow_layers", "flow_cells", "max_log_scale"), ()),
    },
    "env": {
        **dict.fromkeys(("frame_skip", "frame_stack", "noop_max"), ("atari",)),
        **dict.fromkeys(("sticky_actions", "minimal_actions"), ("atari", "minatar")),
        "difficulty_ramping": ("minatar",),
    },
}


def judged(words: str, composed: Any) -> dict[str, Any]:
    """Every setting that a source can differ in: those in force, features that are off left out."""
    found = flat(asdict(composed(words)))
    head = "implicit_quantile" if words.startswith("m_iqn") else found.get("head.name", "expected")
    names = {found.get(f"{group}.name") for group in READ_BY} | {head}
    idle = {"env.name", "env.game", "env.kwargs", "env.import_module", "regularizer.name", "shaping.name", "method"}
    idle |= {"algo.network_diagnostics", "algo.policy"}
    if found.get("algo.eps_off_frames") == 0:
        idle |= {"algo.eps_start", "algo.eps_end", "algo.eps_frames"}
    idle |= set() if found.get("algo.optimizer") == "rmsprop" else {"algo.rms_decay"}
    idle |= set() if head == "expected" else {"algo.loss_function"}
    idle |= set() if found.get("net.dueling", "none") != "none" else {"net.dueling_shares_hidden"}
    idle |= set() if found.get("net.layer_norm", "none") != "none" else {"net.layer_norm_eps"}

    def counts(name: str, value: Any) -> bool:
        group, _, setting = name.partition(".")
        readers = READ_BY.get(group, {}).get(setting)
        read = readers is None or not names.isdisjoint(readers)
        shown = group not in ("run", "head") or name in ("run.eval_episodes", "head.kappa", *OFF)
        return shown and read and name not in idle and not name.endswith("._target_") and OFF.get(name, ...) != value

    return {name: value for name, value in found.items() if counts(name, value)}


@pytest.mark.parametrize("words", TABLE)
def test_presets_are_their_sources_to_the_digit(words, composed):
    """Composed, not read: a default that nobody set is a row, too."""
    rows, found = TABLE[words], flat(asdict(composed(words)))
    assert {name: found[name] for name in rows} == {name: value for name, (value, _, _) in rows.items()}
    assert judged(words, composed).keys() <= rows.keys()
    for name, (_, source, status) in rows.items():
        assert status in ("same", "not stated") or re.fullmatch(r"deviation: \S.+", status), name
        assert (source == "none") == (status == "not stated"), name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_has_all_that_a_preset_sets(preset):
    settings = flat(yaml.safe_load((CONF / f"paper/{preset}.yaml").read_text()))
    own = {name for name in settings if name.partition(".")[0] not in ("defaults", "run") and name != "env.name"}
    rows = [TABLE[words].keys() for words in TABLE if f"+paper={preset}" in words.split()]
    assert rows and own <= set().union(OFF, *rows)


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


def test_young_and_tians_preset_has_the_settings_of_their_curve(composed):
    """But for the cap of an episode."""
    scores = [each for each in published_scores() if each.name.startswith("Young")]
    for published in scores:
        rate = published.settings["algo.learning_rate"]
        words = f"dqn env={published.env} +paper=young2019_minatar algo.learning_rate={rate}"
        ours, theirs = flat(asdict(composed(words))), dict(published.settings)
        assert theirs.pop("env.max_episode_frames") is None and ours["env.max_episode_frames"] == 10_000
        assert {key: ours[key] for key in theirs} == theirs
    assert len(scores) == 20


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


#: Of the two Rainbows, of Beyond The Rainbow and of Revisiting Rainbow's DQN: parameters of 4 actions, of 6 in MinAtar.
PARAMETERS = {
    # Convolutions of 3136 features; each stream has 512 hidden units; sigmas beside all that is noisy.
    "rainbow env=atari +paper=hessel2018": 77_984 + 2 * (2 * (3136 + 1) * 512 + (512 + 1) * 51 * 5),
    "rainbow_compact env=atari +paper=castro2018": 77_984 + (7744 + 1) * 512 + (512 + 1) * 51 * 4,
    "btr env=atari +paper=clark2025": 389_024 + 149_760 + 2 * (2 * (2304 + 1) * 512 + (512 + 1) * 5),
    "dqn env=minatar/breakout +paper=obando2021_minatar": 592 + (1600 + 1) * 6,
}


@pytest.mark.parametrize("words", PARAMETERS)
def test_networks_of_the_presets_have_as_many_parameters_as_published(words, composed):
    network = built(composed(words))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[words]


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
