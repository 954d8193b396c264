"""Every recipe runs, every config composes, every user error is one sentence and exit code 1."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs.utils import ExplorationType

from torchrl_reg.agents import read_policy
from torchrl_reg.analysis.documents import flat
from torchrl_reg.analysis.protocols import published_scores
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import PriorUpdate
from torchrl_reg.objectives import QLearningLoss
from torchrl_reg.training import ValueLearner, evaluate, read_metrics, recipe, strip_wall_clock
from torchrl_reg.training.cli.typed_config import typed

RECIPES = Path(__file__).parents[2] / "recipes"
# Recipes without networks, environments to choose or a replay buffer: tested on their own.
TABULAR = {"maximum_entropy", "mirl_grid", "multigoal", "ments", "ments_trees", "tour"}
CONF = RECIPES / "conf"
#: Presets of q_learning.py, as if each were a recipe; those with a recipe of their own are compared with it.
METHODS = {path.stem for path in (CONF / "method").glob("*.yaml")} - {"m_dqn", "m_iqn"}
NAMES = sorted({path.stem for path in RECIPES.glob("*.py")} - TABULAR | METHODS)
CONTINUOUS = {"iq", "pcl", "sac", "soft_q", "virel"}  # recipes for continuous actions; the others need discrete ones
REPLAY = set(NAMES) - CONTINUOUS - {"pqn"}  # recipes of Q-learning from replay
CRITICS = {"sac", "soft_q", "virel"}  # their losses are several
CONTINUOUS_ENVS = ("pendulum", "mountaincar_continuous", "multigoal", "mujoco/", "adroit/")
ENVS = [str(p.relative_to(CONF / "env").with_suffix("")) for p in sorted((CONF / "env").rglob("*.yaml"))]
#: Which recipes a preset is for, and an environment that goes with it.
PRESETS = {
    "cleanrl_classic": (METHODS | {"m_dqn"}, "mountaincar"),
    "cleanrl_pqn": ({"pqn"}, "acrobot"),
    "gallici2024": ({"pqn"}, "cartpole"),
    "gallici2024_minatar": ({"pqn"}, "minatar/breakout"),
    "dabney2018": (REPLAY, "atari"),
    "graumoya2019": ({"mirl"}, "atari"),
    "nachum2018": ({"pcl"}, "mujoco/hopper"),
    "fellows2019": ({"virel"}, "mujoco/walker2d"),
    "haarnoja2017": ({"soft_q"}, "mujoco/hopper"),
    "vieillard2020": (REPLAY, "atari"),
    "xiao2019": (set(), "atari"),  # of ments, which is tested on its own
    "vieillard2020_cartpole": (REPLAY, "cartpole"),
    "vieillard2021_adroit": ({"iq"}, "adroit/door"),
    "vieillard2021_mujoco": ({"iq"}, "mujoco/hopper"),
}
TINY = ["algo.total_frames=192", "algo.learning_starts_frames=64", "algo.batch_size=8"]
TINY += ["run.evaluate_every_frames=96", "run.checkpoint_every_frames=96", "run.log_every_frames=64"]
TINY += ["run.eval_episodes=2"]


def tiny(name: str) -> list[str]:
    """A run of a second: small networks, short episodes, batches that end at frames 96 and 192."""
    if name == "pqn":
        rollouts = ["algo.collect_steps=24", "algo.epochs=2", "net.num_cells=[16,16]", "net.layer_norm=image"]
        return [*(setting for setting in TINY if "learning_starts" not in setting), *rollouts]
    if name not in CONTINUOUS:
        return [*TINY, "net.num_cells=[16,16]"]
    steps = ["algo.collect_steps=12", "algo.rollout=5"] if name == "pcl" else []
    return [*TINY, "policy.num_cells=[16,16]", "env.max_episode_frames=20", *steps]


def load(name: str) -> ModuleType:
    name = "q_learning" if name in METHODS else name
    if f"recipes_{name}" in sys.modules:
        return sys.modules[f"recipes_{name}"]
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(monkeypatch: pytest.MonkeyPatch, name: str, *overrides: str) -> None:
    method = [f"+method={name}"] if name in METHODS else []
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *method, *overrides])
    load(name).main()


def test_what_is_sampled_is_said_by_value() -> None:
    """Without its mode the policy named "sampled" would be evaluated greedily."""
    for path in RECIPES.glob("*.py"):
        assert not re.search(r'"sampled": \w+}', path.read_text()), path.name


def evaluated_again(folder: Path) -> dict[str, object]:
    """The last evaluation row of a run, from nothing but its saved policy."""
    saved = read_policy(folder)
    run, row = saved.facts["run"], saved.facts["evaluation"]
    env = make_env(EnvSettings(**saved.facts["env"]), run["eval_episodes"])
    policies = {"greedy": saved.policy, "sampled": (saved.policy, ExplorationType.RANDOM)}
    columns = evaluate(env, policies, episodes=run["eval_episodes"], seed=run["seed"])
    return strip_wall_clock({**row, **columns})


@pytest.mark.curves
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_and_leaves_its_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, name, f"run.dir={tmp_path / 'run'}", *tiny(name))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "command.txt", "provenance.json", "metrics.jsonl", "curves.png", "done.json"} <= files
    assert json.loads((tmp_path / "run" / "done.json").read_text())["diverged_frames"] is None
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluations = [row for row in rows if row["event"] == "eval"]
    assert [row["frames"] for row in evaluations] == [96, 192]
    assert {"return_greedy_mean", "return_sampled_mean"} <= set(evaluations[0])
    assert evaluated_again(tmp_path / "run") == strip_wall_clock(evaluations[-1])
    train = [row for row in rows if row["event"] == "train"][-1]
    assert train["loss_qvalue" if name in CRITICS else "loss"] > 0
    if name in ("m_dqn", "m_iqn", "m_c51"):
        assert {"entropy", "action_gap", "kl", "bonus", "bonus_clipped", "soft_gap", "td_error", "tau"} <= set(train)
        assert train["bonus"] < 0
    if name == "mirl":
        told = {"entropy", "action_gap", "kl", "soft_gap", "td_error", "beta", "prior_entropy", "mutual_information"}
        assert told <= set(train) and "tau" not in train
        assert train["beta"] != 1.0 and train["prior_entropy"] < math.log(2)


@pytest.mark.parametrize("env", ["minatar/freeway", "atari"])
@pytest.mark.parametrize("name", ["dqn", "m_iqn", "mirl"])
def test_images(name: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [*TINY, "net.num_cells=[16]", "net.num_quantiles=4", "net.num_target_quantiles=4", "algo.num_envs=2"]
    small += ["env.max_episode_frames=64", "algo.n_steps=3", "algo.replay_capacity=400"]
    start(monkeypatch, name, f"run.dir={tmp_path / 'run'}", f"env={env}", *small)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert (done["frames"], done["diverged_frames"]) == (192, None)


VARIANTS = [
    ("iq", ["algo.alpha=0.9", "algo.clip_min=-0.5"]),
    ("iq", ["algo.residual=true", "policy=gaussian"]),
    ("iq", ["policy=autoregressive", "env=mujoco/hopper"]),
    ("iq", ["policy=flow", "algo.alpha=0.5", "env=mujoco/hopper"]),
    ("iq", ["algo.target_entropy=1.0"]),
    ("mirl", ["algo.method=dqn"]),
    ("q_learning", ["regularizer=tsallis", "shaping=munchausen", "head=quantile", "bootstrap=n_step"]),
    ("q_learning", ["regularizer=prior_kl", "shaping=advantage_gap", "head=categorical"]),
    ("q_learning", ["regularizer=boltzmann", "head=implicit_quantile", "bootstrap=double"]),
    ("q_learning", ["bootstrap=online", "algo.explore=sampled", "regularizer=entropy"]),
    ("mirl", ["algo.method=sql", "algo.beta_rate=0", "env=gridworld/corridor"]),
    ("mirl", ["algo.method=sql_m", "env=gridworld/corridor"]),
    ("mirl", ["env=gridworld/corridor", "algo.n_steps=3"]),
    ("mirl", ["algo.prior_keys=[observation]"]),
    ("mirl", ["algo.prior_keys=[cell]", "env=gridworld/goals"]),
    ("pcl", ["algo.lam=0.1", "algo.max_kl=0.01", "policy=gaussian"]),
    ("pcl", ["algo.unified=true", "algo.rollout=1"]),
    ("pcl", ["algo.delay_value=false"]),
    ("pqn", ["regularizer=entropy", "shaping=munchausen", "algo.explore=sampled", "algo.anneal_by=update"]),
    ("pqn", ["regularizer=tsallis", "algo.clip_rewards=true", "algo.loss_function=half_l2"]),
    ("pqn", ["regularizer=prior_kl", "shaping=advantage_gap", "algo.optimizer=adam", "algo.reward_scale=0.1"]),
    ("sac", ["policy=multicategorical"]),
    ("sac", ["policy=multicategorical", "env=mujoco/hopper", "algo.adapt_tau=false"]),
    ("sac", ["policy=flow"]),
    ("soft_q", ["env=multigoal", "algo.form=haarnoja2017", "algo.num_critics=1"]),
    ("soft_q", ["policy=flow", "algo.proposal=actor"]),
    ("virel", ["algo.value_network=true", "algo.error_batch=100", "algo.exponent=1"]),
    ("virel", ["policy=flow", "algo.beta_scale=null"]),
]


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_variants_learn_something(
    name: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [o for o in tiny(name) if not o.startswith("algo.rollout") or "algo.rollout=1" not in overrides]
    short += ["algo.replay_capacity=1000"] if name != "pqn" else []
    start(monkeypatch, name, f"run.dir={tmp_path / 'run'}", *overrides, *short)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    trained = [row for row in rows if row["event"] == "train" and row["updates"] > 0]
    losses = [row["loss_qvalue" if name in CRITICS else "loss"] for row in trained]
    assert losses and all(math.isfinite(value) and value > 0 for value in losses)


@pytest.mark.parametrize("name", ["virel", "sparse_dqn", "mirl", "m_dqn"])
def test_numbers_that_are_not_finite_end_a_recipe_in_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever they are met first: when a policy is evaluated, acts, or is sampled in an update."""
    rare = ["algo.learning_rate=1e38", "run.log_every_frames=1000", "run.checkpoint_every_frames=1000"]
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, name, f"run.dir={tmp_path / 'run'}", *tiny(name), *rare)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1 and re.search(
        r"is (nan|-?inf) at frame \d+ \(finite at \d+\), so the run st", sentence
    )
    assert json.loads((tmp_path / "run" / "failed.json").read_text())["last_line"] == sentence


def fits(name: str, env: str) -> bool:
    return env.startswith(CONTINUOUS_ENVS) == (name in CONTINUOUS)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_composes(name: str) -> None:
    assert set(PRESETS) == {p.stem for p in (CONF / "paper").glob("*.yaml")}
    module = load(name)
    recipe(module.Config, module.train)  # Hydra composes what was stored last under this name, by a benchmark say
    choices = [[f"env={env}"] for env in ENVS if fits(name, env)]
    choices += [[f"+paper={p}", f"env={env}"] for p, (names, env) in PRESETS.items() if name in names]
    choices += [[f"policy={p.stem}"] for p in (CONF / "policy").glob("*.yaml") if name in CONTINUOUS]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in choices:
            method = [f"+method={name}"] if name in METHODS else []
            config = compose("q_learning" if name in METHODS else name, overrides=[*method, *overrides])
            config.run.dir = "unused"
            settings = typed(config, module.Config)
            assert isinstance(settings, module.Config)
            settings.algo.validate()
            settings.env.validate()
            assert settings.env.max_episode_frames is not None  # resolved: config.yaml records what is in force


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dqn", ["+paper=cleanrl_classic"]),
        ("c51", ["+paper=cleanrl_classic", "algo.adam_eps=7.8125e-5"]),
        ("pqn", ["+paper=cleanrl_pqn"]),
    ],
)
def test_cleanrls_presets_have_the_settings_of_its_published_scores(name: str, overrides: list[str]) -> None:
    module, method = load(name), [f"+method={name}"] if name in METHODS else []
    scores = [each for each in published_scores() if each.method == name and each.name.startswith("CleanRL")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for published in scores:
            given = [*method, f"env={published.env}", *overrides, "run.dir=unused"]
            settings = typed(compose("q_learning" if method else name, overrides=given), module.Config)
            settings.env.validate()
            ours = flat(asdict(settings))
            assert {key: ours[key] for key in published.settings} == published.settings
            assert abs(settings.algo.total_frames - published.frames) <= 0.005 * published.frames
    assert len(scores) in (3, 6)


@pytest.mark.parametrize(
    ("preset", "default"), [("vieillard2021_mujoco", "multicategorical"), ("nachum2018", "gaussian")]
)
def test_the_policy_asked_for_beats_the_preset(preset: str, default: str) -> None:
    name = "pcl" if preset == "nachum2018" else "iq"
    load(name)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"+paper={preset}", "env=mujoco/hopper"]
        assert compose(name, overrides=given).policy.name == default
        assert compose(name, overrides=["policy=flow", *given]).policy.name == "flow"


def test_command_line_beats_preset_beats_env_beats_recipe() -> None:
    load("m_iqn")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        atari = compose("m_iqn", overrides=["env=atari"])
        preset = compose("m_iqn", overrides=["env=atari", "+paper=vieillard2020"])
        line = compose("m_iqn", overrides=["+paper=vieillard2020", "env=atari", "algo.learning_rate=3", "net=mlp"])
    assert (atari.net.name, atari.net.num_quantiles, atari.algo.learning_rate) == ("nature", 64, 5e-5)
    assert (atari.algo.total_frames, preset.algo.total_frames) == (10_000_000, 200_000_000)
    assert (line.algo.learning_rate, line.net.name) == (3, "mlp")


@pytest.mark.parametrize(
    ("overrides", "grid"),
    [
        ([], (101, -100.0, 100.0)),
        (["env=lunarlander"], (101, -400.0, 400.0)),
        (["env=minatar/breakout"], (51, -10.0, 10.0)),
        (["env=minatar/space_invaders"], (101, -100.0, 100.0)),
        (["env=minatar/space_invaders", "net.value_max=50"], (101, -100.0, 50.0)),
        (["env=atari"], (51, -10.0, 10.0)),
    ],
    ids=str,
)
def test_the_grid_of_returns_is_that_of_the_environment(overrides: list[str], grid: tuple[int, float, float]) -> None:
    load("c51")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        net = compose("q_learning", overrides=["+method=c51", *overrides]).net
    assert (net.num_atoms, net.value_min, net.value_max) == grid


BAD = [
    (["env=cartpool"], "cartpole"),
    (["algo.taau=0.1"], "algo.tau"),
    (["algo.tau=-1"], "algo.tau"),
    (["algo.alpha=2"], "algo.alpha"),
    (["algo.clip_min=0.5"], "algo.clip_min"),
    (["algo.tau=warm"], "algo.tau"),
    (["algo.gamma=1.5"], "algo.gamma"),
    (["env=atari", "env.game=Brekout"], "breakout"),
    (["env.frame_skip=4"], "frame_skip"),
    (["+paper=vieilard2020"], "vieillard2020"),
    (["env=mujoco/hopper"], "does not go with this recipe: it sets policy, which this recipe does not have"),
    (["env.name=pendulum"], "env must have discrete actions (a categorical spec), got continuous ones"),
    (["env=pendulum"], "env=pendulum does not go with this recipe"),
    (["net=nature"], "NetSettings.name must fit observations of shape (4,), got 'nature'"),
    (["algo.n_steps=0"], "algo.n_steps"),
    (["algo.loss_function=l3"], "loss_function"),
    (["algo.batch_size=0"], "algo.batch_size"),
    (["algo.num_envs=0"], "algo.num_envs"),
    (["algo.learning_rate=0"], "algo.learning_rate"),
    (["algo.target_period_updates=0"], "period_updates"),
    (["algo.update_every_frames=0"], "algo.update_every_frames"),
    (["algo.total_frames=0"], "algo.total_frames"),
    (["algo.eps_start=2"], "algo.eps_start"),
    (["algo.adam_eps=-1"], "algo.adam_eps"),
    (["algo.learning_starts_frames=-5"], "algo.learning_starts_frames"),
    (
        ["algo.learning_starts_frames=60000"],
        "algo.learning_starts_frames must be < algo.total_frames = 60,000, to learn",
    ),
    (["algo.update_every_frames=59001"], "algo.update_every_frames must be <= 59,000, the frames that learning lasts"),
    (["algo.update_every_frames=inf"], "algo.update_every_frames must be a finite number, got inf."),
    (["algo.learning_rate=inf"], "algo.learning_rate must be a finite number, got inf."),
    (["algo.clip_min=-inf"], "algo.clip_min must be a finite number, got -inf."),
    (["algo.batch_size=100000000000000000000"], "algo.batch_size must be an integer below 2^63"),
    (["~env"], "~env would remove env, which this recipe needs"),
]


CONTINUOUS_BAD = [
    ("iq", ["env=cartpole"], "env=cartpole does not go with this recipe: it sets net, which this recipe does not have"),
    ("iq", ["env.name=cartpole"], "bounded box of actions"),
    ("iq", ["env=atari"], "env=atari does not go with this recipe: it sets net"),
    ("iq", ["+paper=nachum2018"], "paper=nachum2018 does not go with this recipe: it sets algo.lam"),
    ("iq", ["algo.tau=0"], "algo.tau"),
    ("iq", ["algo.alpha=-1"], "algo.alpha"),
    ("iq", ["policy.num_bins=1"], "num_bins must be at least 2"),
    ("iq", ["policy=gausian"], "gaussian"),
    ("iq", ["policy.name=beta"], "PolicySettings.name must be one of"),
    ("iq", ["policy.num_cells=[]"], "num_cells"),
    ("iq", ["algo.target_entropy=1.0", "policy=gaussian"], "target_entropy"),
    ("iq", ["algo.target_rate=0"], "algo.target_rate"),
    ("iq", ["env=mujoco/hoper"], "mujoco/hopper"),
    ("pcl", ["algo.rollout=13"], "algo.rollout"),
    ("pcl", ["algo.unified=true", "policy=gaussian"], "unified"),
    ("pcl", ["algo.tau=0"], "tau or lam"),
    ("pcl", ["algo.max_kl=-1"], "max_kl"),
    ("iq", ["algo.target_entropy=1.0", "policy=flow"], "algo.target_entropy"),
    ("iq", ["algo.target_entropy=9.0"], "target_entropy must lie between 0 and 2.398"),
    ("iq", ["policy=gaussian", "policy.scale_mapping=foo"], "scale_mapping"),
    ("pcl", ["algo.replay_capacity=20"], "algo.replay_capacity"),
    ("sac", ["algo.tau=inf"], "algo.tau"),
    ("sac", ["algo.adapt_tau=false", "algo.target_entropy=-1"], "algo.target_entropy"),
    ("sac", ["policy=multicategorical", "algo.target_entropy=9"], "algo.target_entropy"),
    ("sac", ["policy=autoregressive"], "policy.name"),
    ("sac", ["algo.tau=-1"], "algo.tau"),
    ("virel", ["algo.beta_scale=0"], "algo.beta_scale"),
    ("virel", ["policy=multicategorical"], "policy.name must be gaussian or flow"),
    ("soft_q", ["algo.num_particles=2"], "algo.num_particles"),
    ("soft_q", ["algo.proposal=actor"], "algo.proposal"),
    ("soft_q", ["policy=gaussian"], "policy.name must be sampler or flow"),
]


@pytest.mark.parametrize("method", ["sql", "sql_m", "mirl"])
def test_whose_prior_is_learnt(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target of SQL and SQL_m keeps the uniform prior; SQL_m and MIRL explore from a learnt one."""
    updated, forward = [], PriorUpdate.forward
    monkeypatch.setattr(PriorUpdate, "forward", lambda self, batch: (updated.append(batch.shape), forward(self, batch)))
    learning = ["algo.prior_rate=0.1", "env=gridworld/corridor"]
    start(monkeypatch, "mirl", f"run.dir={tmp_path / 'b'}", f"algo.method={method}", *tiny("mirl"), *learning)
    assert bool(updated) == (method != "sql")
    rows = [row for row in read_metrics(tmp_path / "b" / "metrics.jsonl") if "prior_entropy" in row]
    is_uniform = rows[-1]["prior_entropy"] == pytest.approx(math.log(4), abs=1e-6)
    assert is_uniform == (method != "mirl")


@pytest.mark.parametrize("name", ["m_dqn", "m_iqn"])
def test_the_presets_of_the_two_recipes_written_out_are_those_recipes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, name, f"run.dir={tmp_path / 'a'}", *tiny(name))
    start(monkeypatch, "q_learning", f"+method={name}", f"run.dir={tmp_path / 'b'}", *tiny(name))
    mine, theirs = ([strip_wall_clock(r) for r in read_metrics(tmp_path / d / "metrics.jsonl")] for d in "ab")
    assert mine == theirs and len(mine) > 2


def hand_written_qr_dqn(net: nn.Module, batches: list[TensorDictBase], every: int, rate: float, gamma: float) -> None:
    """Quantile regression as in Dabney et al. 2018: sum over the online quantiles of the mean over the target's."""
    target, quantiles = deepcopy(net), 8
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, eps=1e-5)
    fractions = (torch.arange(quantiles) + 0.5).unsqueeze(-1) / quantiles
    for updates, batch in enumerate(batches, 1):
        after, index = batch["next"], torch.arange(len(batch))
        z = net(batch["observation"]).view(len(batch), quantiles, -1)[index, :, batch["action"]]
        with torch.no_grad():
            next_z = target(after["observation"]).view(len(batch), quantiles, -1)
            next_z = next_z[index, :, next_z.mean(1).argmax(-1)]
            y = after["reward"] + gamma * (~after["terminated"]) * next_z
        error = y.unsqueeze(1) - z.unsqueeze(2)
        huber = torch.where(error.abs() <= 1, error.square() / 2, error.abs() - 0.5)
        loss = ((fractions - (error.detach() < 0).float()).abs() * huber).mean(2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if updates % every == 0:
            target.load_state_dict(net.state_dict())


def test_qr_dqn_is_the_hand_written_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, nets, batches, learners = load("qr_dqn"), [], [], []

    class Watched(ValueLearner):
        def __init__(self, run: Any, algo: Any, loss: Any, *rest: Any, **more: Any) -> None:
            super().__init__(run, algo, loss, *rest, **more)
            learners.append(self)
            inner = self.update
            self.update = lambda batch: (batches.append(batch.clone()), inner(batch))[1]

    def loss_of(actor: Any, **slots: Any) -> Any:
        nets.append(deepcopy(actor.distribution.network))
        return QLearningLoss(actor, **slots)

    monkeypatch.setattr(module, "ValueLearner", Watched)
    monkeypatch.setattr(module, "QLearningLoss", loss_of)
    settings = ["algo.anneal_learning_rate=false", "algo.target_period_updates=5", "net.num_quantiles=8"]
    start(monkeypatch, "qr_dqn", f"run.dir={tmp_path / 'run'}", *tiny("qr_dqn"), *settings)
    assert len(batches) == 32
    hand_written_qr_dqn(nets[0], batches, every=5, rate=2e-3, gamma=0.99)
    trained = list(learners[0].loss.value_network_params.values(True, True))
    assert len(trained) == len(list(nets[0].parameters()))
    for mine in nets[0].parameters():
        assert any(each.shape == mine.shape and torch.allclose(each, mine, atol=1e-5) for each in trained)


def test_mirl_without_a_prior_is_the_dqn_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "mirl", f"run.dir={tmp_path / 'a'}", "algo.method=dqn", *tiny("mirl"))
    start(monkeypatch, "dqn", f"run.dir={tmp_path / 'b'}", *tiny("mirl"))
    mine, theirs = ([strip_wall_clock(r) for r in read_metrics(tmp_path / d / "metrics.jsonl")] for d in "ab")
    assert mine == theirs and len(mine) > 2


MIRL_BAD = [
    (["algo.method=ddqn"], "algo.method must be one of dqn, sql, sql_m, mirl"),
    (["algo.beta=0"], "algo.beta must be a finite number > 0, got 0.0"),
    (["algo.beta=-1"], "algo.beta must be a finite number > 0, got -1.0"),
    (["algo.beta=0.01"], "algo.beta must be in [algo.beta_min, algo.beta_max]"),
    (["algo.prior_keys=[steps]", "env=gridworld/corridor"], "The prior's keys must be among observation, got"),
    (["algo.beta_rate=1.5"], "algo.beta_rate"),
    (["algo.beta_min=5", "algo.beta_max=1"], "algo.beta_min and algo.beta_max"),
    (["algo.prior_rate=0"], "algo.prior_rate"),
    (["algo.prior_rate=2"], "algo.prior_rate"),
    (["algo.method=sql", "algo.prior_keys=[observation]"], "algo.prior_keys"),
    (["algo.prior_keys=[goal]"], "The prior's keys must be among observation"),
    (["algo.tau=1"], "algo.tau is not a setting"),
    (["env=pendulum"], "env=pendulum does not go with this recipe"),
]


NET_BAD = [
    ("iqn", ["net.num_cosines=0"], "NetSettings.num_cosines must be >= 1, got 0."),
    ("c51", ["net.num_atoms=0"], "NetSettings.num_atoms must be >= 2, got 0."),
    ("q_learning", ["regularizer=sparsmax"], "choose one of bellman_error, boltzmann, entropy, none, own"),
    (
        "q_learning",
        ["regularizer=entropy", "regularizer.taau=1"],
        "takes (regularizer.tau), got regularizer.tau, regularizer.taau.",
    ),
    ("q_learning", ["regularizer=entropy", "regularizer.tau=-1"], "tau must be a finite number > 0"),
    ("q_learning", ["regularizer=own"], "regularizer.path must have a value, got none"),
    ("q_learning", ["regularizer=own", "regularizer.path=nothing:Own"], "must name a module in the working directory"),
    ("q_learning", ["regularizer=own", "regularizer.path=math:Own"], "must name something in math, got 'Own'"),
    ("q_learning", ["regularizer=own", "regularizer.path=Own"], "an import path, written module:Name, got 'Own'"),
    ("q_learning", ["shaping.path=torchrl_reg.regularizers:HardMax"], "shaping.path must be that of a Shaping"),
    ("q_learning", ["+method=m_dqn", "bootstrap=double"], "double_dqn must be False with a shaping"),
    ("q_learning", ["algo.explore=boldly"], "algo.explore must be greedy or sampled"),
    ("q_learning", ["head.network.path=math:pi"], "head.network.path must name a class or a function"),
    ("iq", ["algo.num_envs=100000000"], "algo.num_envs must be <= 100,000, got 100000000."),
]
NAMED_BAD = [*CONTINUOUS_BAD, *NET_BAD, *(("mirl", overrides, expected) for overrides, expected in MIRL_BAD)]


@pytest.mark.parametrize(("name", "overrides", "expected"), NAMED_BAD, ids=str)
def test_user_errors_of_a_recipe(
    name: str,
    overrides: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, name, f"run.dir={tmp_path / 'run'}", *tiny(name), *overrides)
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert "\n" not in error and "Traceback" not in error


@pytest.mark.parametrize(("overrides", "expected"), BAD, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_user_errors_are_one_sentence(
    overrides: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "m_dqn", f"run.dir={tmp_path / 'run'}", *overrides)
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert "\n" not in error and "Traceback" not in error
    assert not (tmp_path / "run" / "done.json").exists()


COLLECTORS_AGREE = {
    "m_dqn": ["algo.n_steps=3"],
    "iqn": ["env=acrobot", "env.max_episode_frames=20"],
    "m_iqn": ["env=minatar/breakout"],
    "mirl": ["algo.prior_keys=[observation]"],
    "iq": ["policy=autoregressive", "env=mujoco/hopper"],
    "pcl": ["policy=flow"],
    "sac": ["policy=gaussian", "env=mountaincar_continuous"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_lean_collector_changes_no_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for collector in ("fast", "torchrl"):
        settings = [*tiny(name), *COLLECTORS_AGREE.get(name, []), f"run.collector={collector}"]
        start(monkeypatch, name, f"run.dir={tmp_path / collector}", *settings)
    fast, reference = (
        [strip_wall_clock(row) for row in read_metrics(tmp_path / collector / "metrics.jsonl")]
        for collector in ("fast", "torchrl")
    )
    assert fast == reference


@pytest.mark.parametrize("name", ["m_dqn", "iq"])
def test_help_describes_every_setting_and_only_choices_that_fit(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, name, "--help", "algo.tau=0.5")
    text = capsys.readouterr().out
    assert text.startswith(load(name).__doc__.splitlines()[0])
    settings = [line for line in text.splitlines() if line.startswith("  ") and "=" in line.split()[0]]
    settings = [
        line for line in settings if line.split()[0].partition(".")[0] in ("run", "env", "net", "policy", "algo")
    ]
    assert len(settings) > 30 and all(len(line.split()) > 1 for line in settings)
    assert "  algo.tau=0.5 " in text and "temperature, reward units" in text
    choices = {}
    group = ""
    for line in text.partition("Choices")[2].partition("Other words")[0].splitlines()[1:]:
        found, _, names = line.strip().rpartition("= ") if "= " in line else (group, "", line)
        group = found
        choices[group] = choices.get(group, "") + names
    shown = {each.strip().split(" ")[0] for each in choices["env"].split(",") if each.strip()}
    assert shown == {env for env in ENVS if fits(name, env)}
    presets = {each.strip().split(" ")[0] for each in re.sub(r"\(.*?\)", "", choices["+paper"]).split(",")}
    assert presets == {preset for preset, (names, _) in PRESETS.items() if name in names}
    assert "+plan=" not in text and "net: null" not in text and ("net=" in text) == (name == "m_dqn")
