"""Every recipe runs, writes its record, and implements its method."""

from __future__ import annotations

import json
import math
import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import ValueLearner, evaluate, strip_wall_clock
from torchrl_reg.lab.agents import read_policy
from torchrl_reg.modules import PriorUpdate
from torchrl_reg.objectives import QLearningLoss

RECIPES = Path(__file__).parents[2] / "recipes"
METHODS = {path.stem for path in (RECIPES / "conf/method").glob("*.yaml")} - {"m_dqn", "m_iqn"}
#: Scripts on none of the learners, whose settings all others share; these are tested on their own.
OTHERS = {"maximum_entropy", "ments", "ments_trees", "mirl_grid", "multigoal", "ray_m_dqn", "theory", "tour"}
NAMES = sorted({path.stem for path in RECIPES.glob("*.py")} - OTHERS | METHODS)
CRITICS = {"sac", "soft_q", "virel"}  # their losses are several
SHORT = "algo.total_frames=192 algo.batch_size=8 run.log_every_frames=64 run.eval_episodes=2"
SHORT += " run.evaluate_every_frames=96 run.checkpoint_every_frames=96"
TINY = f"{SHORT} algo.learning_starts_frames=64 algo.replay_capacity=1000"
POLICY = f"{TINY} policy.num_cells=[16,16] env.max_episode_frames=20"
#: A run of a second: small networks, short episodes, batches that end at frames 96 and 192.
OWN = {
    **dict.fromkeys(("iq", "sac", "soft_q", "virel"), POLICY),
    "pcl": f"{POLICY} algo.collect_steps=12 algo.rollout=5",
    "pqn": f"{SHORT} algo.collect_steps=24 algo.epochs=2 net.num_cells=[16,16] net.layer_norm=image",
}


def tiny(name: str) -> str:
    """A recipe's name and the settings of a run of a second."""
    return f"{name} {OWN.get(name, f'{TINY} net.num_cells=[16,16]')}"


def evaluated_again(folder: Path) -> dict:
    """The last evaluation row of a run, from nothing but its saved policy."""
    saved = read_policy(folder)
    run, row = saved.facts["run"], saved.facts["evaluation"]
    env = make_env(EnvSettings(**saved.facts["env"]), run["eval_episodes"])
    policies = {"greedy": saved.policy, "sampled": (saved.policy, ExplorationType.RANDOM)}
    columns = evaluate(env, policies, episodes=run["eval_episodes"], seed=run["seed"])
    return strip_wall_clock({**row, **columns})


MUNCHAUSEN = {"entropy", "action_gap", "kl", "bonus", "bonus_clipped", "soft_gap", "td_error", "tau"}
MIRL = {"entropy", "action_gap", "kl", "soft_gap", "td_error", "beta", "prior_entropy", "mutual_information"}
REPORTED = {**dict.fromkeys(("m_dqn", "m_iqn", "m_c51"), MUNCHAUSEN), "mirl": MIRL}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_and_leaves_its_record(name, start, tmp_path):
    rows = start(tiny(name))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "command.txt", "provenance.json", "metrics.jsonl", "done.json"} <= files
    assert json.loads((tmp_path / "run/done.json").read_text())["diverged_frames"] is None
    evaluations = [row for row in rows if row["event"] == "eval"]
    assert [row["frames"] for row in evaluations] == [96, 192]
    assert {"return_greedy_mean", "return_sampled_mean"} <= set(evaluations[0])
    assert evaluated_again(tmp_path / "run") == evaluations[-1]
    train = [row for row in rows if row["event"] == "train"][-1]
    assert train["loss_qvalue" if name in CRITICS else "loss"] > 0
    assert REPORTED.get(name, set()) <= set(train)
    assert name not in ("m_dqn", "m_iqn", "m_c51") or train["bonus"] < 0
    assert name != "mirl" or ("tau" not in train and train["beta"] != 1.0 and train["prior_entropy"] < math.log(2))


@pytest.mark.parametrize("env", ["minatar/freeway", "atari"])
@pytest.mark.parametrize("name", ["dqn", "m_iqn", "mirl"])
def test_images(name, env, start, tmp_path):
    small = "net.num_cells=[16] net.num_quantiles=4 net.num_target_quantiles=4 algo.num_envs=2 algo.n_steps=3"
    start(f"{name} env={env} {TINY} {small} env.max_episode_frames=64 algo.replay_capacity=400")
    done = json.loads((tmp_path / "run/done.json").read_text())
    assert (done["frames"], done["diverged_frames"]) == (192, None)


VARIANTS = [
    ("iq", "algo.alpha=0.9 algo.clip_min=-0.5"),
    ("iq", "algo.residual=true policy=gaussian"),
    ("iq", "policy=autoregressive env=mujoco/hopper"),
    ("iq", "policy=flow algo.alpha=0.5 env=mujoco/hopper"),
    ("iq", "algo.target_entropy=1.0"),
    ("iq", "algo.baseline=mean algo.alpha=0.5"),
    ("mirl", "algo.method=sql algo.beta_rate=0 env=gridworld/corridor"),
    ("mirl", "algo.method=sql_m env=gridworld/corridor algo.n_steps=3"),
    ("mirl", "algo.prior_keys=[cell] env=gridworld/goals"),
    ("mirl", "algo.prior_keys=[observation]"),
    ("q_learning", "regularizer=tsallis shaping=munchausen head=quantile bootstrap=n_step"),
    ("q_learning", "regularizer=prior_kl shaping=advantage_gap head=categorical"),
    ("q_learning", "regularizer=boltzmann head=implicit_quantile bootstrap=double"),
    ("q_learning", "bootstrap=online algo.explore=sampled regularizer=entropy"),
    ("pcl", "algo.lam=0.1 algo.max_kl=0.01 policy=gaussian"),
    ("pcl", "algo.unified=true algo.rollout=1"),
    ("pcl", "algo.delay_value=false"),
    ("pqn", "regularizer=entropy shaping=munchausen algo.explore=sampled algo.anneal_by=update"),
    ("pqn", "regularizer=tsallis algo.clip_rewards=true algo.loss_function=half_l2"),
    ("pqn", "regularizer=prior_kl shaping=advantage_gap algo.optimizer=adam algo.reward_scale=0.1"),
    ("sac", "policy=multicategorical env=mujoco/hopper algo.adapt_tau=false"),
    ("sac", "policy=multicategorical"),
    ("sac", "policy=flow"),
    ("soft_q", "env=multigoal algo.form=haarnoja2017 algo.num_critics=1"),
    ("soft_q", "policy=flow algo.proposal=actor"),
    ("virel", "algo.value_network=true algo.error_batch=100 algo.exponent=1"),
    ("virel", "policy=flow algo.beta_scale=null"),
]


@pytest.mark.parametrize(("name", "words"), VARIANTS)
def test_variants_learn_something(name, words, start):
    rows = start(f"{tiny(name)} {words}")
    trained = [row for row in rows if row["event"] == "train" and row["updates"] > 0]
    losses = [row["loss_qvalue" if name in CRITICS else "loss"] for row in trained]
    assert losses and all(math.isfinite(value) and value > 0 for value in losses)


def test_virel_takes_the_literal_m_step(start):
    one, other = (start(f"{tiny('virel')} algo.mode={mode}", mode) for mode in ("td", "em"))
    losses = [
        [row["loss_qvalue"] for row in rows if row["event"] == "train" and row["updates"]] for rows in (one, other)
    ]
    assert losses[0] != losses[1] and all(math.isfinite(value) for value in losses[1])


def test_virels_temperature_stays_until_the_replay_holds_its_batch(start):
    """So in the released code: .7 to frame 128, the error of 128 transitions after."""
    rows = start(f"{tiny('virel')} algo.tau=0.7 algo.error_batch=128 algo.error_rate=1 run.log_every_frames=1")
    taus = [(row["frames"], row["tau"]) for row in rows if row["event"] == "train" and row["updates"]]
    assert {tau == pytest.approx(0.7) for frames, tau in taus if frames <= 128} == {True}
    assert taus[-1][1] != pytest.approx(0.7)


@pytest.mark.parametrize("name", ["virel", "sparse_dqn", "mirl", "m_dqn"])
def test_numbers_that_are_not_finite_end_a_recipe_in_one_sentence(name, start, tmp_path, capsys):
    """Wherever they are met first: when a policy is evaluated, acts, or is sampled in an update."""
    rare = "algo.learning_rate=1e38 run.log_every_frames=1000 run.checkpoint_every_frames=1000"
    with pytest.raises(SystemExit) as ended:
        start(f"{tiny(name)} {rare}")
    sentence = capsys.readouterr().err.splitlines()[-1]
    stopped = r"is (nan|-?inf) at frame \d+ \(finite at \d+\), so the run st"
    assert ended.value.code == 1 and re.search(stopped, sentence)
    assert json.loads((tmp_path / "run/failed.json").read_text())["last_line"] == sentence


@pytest.mark.parametrize("method", ["sql", "sql_m", "mirl"])
def test_whose_prior_is_learnt(method, start, monkeypatch):
    """The target of SQL and SQL_m keeps the uniform prior; SQL_m and MIRL explore from a learnt one."""
    updated, forward = [], PriorUpdate.forward
    monkeypatch.setattr(PriorUpdate, "forward", lambda self, batch: (updated.append(batch.shape), forward(self, batch)))
    rows = start(f"{tiny('mirl')} algo.method={method} algo.prior_rate=0.1 env=gridworld/corridor")
    # From the first batch on, before learning too (algorithm 1, line 5).
    assert sum(shape.numel() for shape in updated) == (0 if method == "sql" else 192)
    last = [row["prior_entropy"] for row in rows if "prior_entropy" in row][-1]
    assert (last == pytest.approx(math.log(4), abs=1e-6)) == (method != "mirl")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "m_dqn algo.tau=0.5 algo.alpha=0.5 algo.clip_min=-0.3",
            "q_learning +method=m_dqn regularizer.tau=0.5 shaping.alpha=0.5 shaping.clip_min=-0.3"
            " net.layer_norm=image bootstrap=n_step",
        ),
        ("m_iqn", "q_learning +method=m_iqn bootstrap=n_step"),
        ("mirl algo.method=dqn", "dqn"),
    ],
)
def test_presets_and_limits_are_the_recipes_written_out(one, other, start):
    settings = tiny("m_dqn").removeprefix("m_dqn")
    rows = start(one + settings, "one")
    assert rows == start(other + settings, "other") and len(rows) > 2


@pytest.mark.parametrize("words", ["m_dqn", "m_iqn", "mirl", "mirl algo.method=dqn", "c51"])
def test_the_reduction_of_priority_weights_reaches_the_loss(words, start):
    settings = f"{words} {tiny('m_dqn').removeprefix('m_dqn')} algo.priority_exponent=0.6 algo.importance_exponent=1"
    losses = [
        [row["loss"] for row in start(f"{settings} algo.weight_reduction={which}", which) if "loss" in row]
        for which in ("normalized", "mean")
    ]
    assert losses[0] and losses[0] != losses[1]


def hand_written_qr_dqn(net, batches, every, rate, gamma):
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


def test_qr_dqn_is_the_hand_written_method(start, load, monkeypatch):
    module, nets, batches, learners = load("qr_dqn"), [], [], []

    class Watched(ValueLearner):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            learners.append(self)
            inner = self.update
            self.update = lambda batch: (batches.append(batch.clone()), inner(batch))[1]

    def loss_of(actor, **slots):
        nets.append(deepcopy(actor.distribution.network))
        return QLearningLoss(actor, **slots)

    monkeypatch.setattr(module, "ValueLearner", Watched)
    monkeypatch.setattr(module, "QLearningLoss", loss_of)
    start(f"{tiny('qr_dqn')} algo.anneal_learning_rate=false algo.target_period_updates=5 net.num_quantiles=8")
    assert len(batches) == 32
    hand_written_qr_dqn(nets[0], batches, every=5, rate=2e-3, gamma=0.99)
    trained = list(learners[0].loss.value_network_params.values(True, True))
    assert len(trained) == len(list(nets[0].parameters()))
    for mine in nets[0].parameters():
        assert any(each.shape == mine.shape and torch.allclose(each, mine, atol=1e-5) for each in trained)


COLLECTORS_AGREE = {
    "m_dqn": "algo.n_steps=3",
    "iqn": "env=acrobot env.max_episode_frames=20",
    "m_iqn": "env=minatar/breakout",
    "mirl": "algo.prior_keys=[observation]",
    "iq": "policy=autoregressive env=mujoco/hopper",
    "pcl": "policy=flow",
    "sac": "policy=gaussian env=mountaincar_continuous",
}


@pytest.mark.parametrize("name", ["m_dqn", "pqn", "rainbow"])
def test_diagnostics_of_the_network_change_nothing_else(name, start):
    watched, plain = (start(f"{tiny(name)} algo.network_diagnostics={on}", on) for on in ("true", "false"))
    added = {"policy_churn", "effective_rank", "dead_units", *(["action_swaps"] if name != "pqn" else [])}
    assert any(added <= set(row) for row in watched)
    assert [{key: value for key, value in row.items() if key not in added} for row in watched] == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_fast_collector_changes_no_row(name, start):
    words = f"{tiny(name)} {COLLECTORS_AGREE.get(name, '')}"
    assert start(f"{words} run.collector=fast", "fast") == start(f"{words} run.collector=torchrl", "torchrl")


FILMED = f"{tiny('q_learning')} run.evaluate_every_frames=32 run.eval_episodes=1 env.max_episode_frames=6"


def test_videos_are_filmed_and_change_nothing_else(start, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pygame")
    assert start(f"{FILMED} run.video_every_frames=70", "filmed") == start(FILMED, "without")
    videos = sorted((tmp_path / "filmed/videos").iterdir())
    assert [path.name for path in videos] == ["000000000096.gif", "000000000160.gif"]
    for path in videos:
        with image.open(path) as video:
            assert video.n_frames == 7  # six steps and the last state
    assert not (tmp_path / "without/videos").exists()


def test_what_cannot_be_filmed_is_said_once(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    start(f"{FILMED} run.video_every_frames=32")
    assert capsys.readouterr().out.count("no videos: play needs Pillow, got none") == 1
    assert (tmp_path / "run/done.json").exists()
