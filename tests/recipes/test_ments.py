"""Online planning: episodes, the record, resuming after a kill, networks of finished runs."""

from __future__ import annotations

import json

import pytest
import torch
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.agents import save_policy
from torchrl_reg.modules import NetSettings, q_network

TINY = "ments run.eval_episodes=2 algo.num_simulations=6 run.log_every_frames=8 run.checkpoint_every_frames=8"
RUNS = {
    "gridworld": "algo.method=rents env.game=corridor env.max_episode_frames=30",
    "cartpole": "plan=cartpole algo.rollout_steps=3 env.max_episode_frames=12 algo.method=puct",
    "minatar": "plan=minatar env.game=freeway env.sticky_actions=0.1 algo.rollout_steps=1 env.max_episode_frames=12",
    "atari": "plan=atari algo.rollout_steps=0 env.max_episode_frames=48 env.sticky_actions=0.25",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, start, load, tmp_path, monkeypatch):
    words = f"{TINY} {RUNS[name]}"
    expected = start(words, "whole")
    module, searches = load("ments"), []
    planner = module.Planner.forward

    class Killed(BaseException):
        pass

    def killing(self, *args, **kwargs):
        searches.append(self)
        if len(searches) == 7:
            raise Killed
        return planner(self, *args, **kwargs)

    monkeypatch.setattr(module.Planner, "forward", killing)
    with pytest.raises(Killed):
        start(words, "killed")
    assert not (tmp_path / "killed/done.json").exists()
    assert start(words, "killed") == expected
    decisions = len(json.loads((tmp_path / "killed/parts/decisions.json").read_text())["decisions"])
    assert decisions > 6 and len(searches) < 2 * decisions  # the first ones were not searched again
    last = expected[-1]
    assert last["event"] == "eval" and last["episodes"] == len(last["returns"]) == 2
    assert last["return_greedy_mean"] == pytest.approx(sum(last["returns"]) / 2)
    done = json.loads((tmp_path / "whole/done.json").read_text())
    assert done["evaluation"]["return_greedy_mean"] == last["return_greedy_mean"] and done["frames"] == last["frames"]


def test_seeds_make_a_difference(start):
    short = f"{TINY} env.game=grid env.max_episode_frames=12 algo.method=uct"
    one = start(short, "one")
    assert one != start(f"{short} run.seed=1", "two")
    assert [row["event"] for row in one][-2:] == ["act", "eval"] and one[-1]["frames"] <= 24


TRAINED = {
    "cartpole": (EnvSettings("cartpole"), NetSettings(num_cells=[8]), 3),
    "minatar": (EnvSettings("minatar", game="breakout"), NetSettings(name="minatar", num_cells=[8]), 3),
    "atari": (EnvSettings("atari", game="Breakout"), NetSettings(name="nature", num_cells=[8]), 12),
}


@pytest.fixture
def trained(tmp_path):
    """``trained(name)``: a Q-network as a run of that environment would leave it in its folder."""

    def made(name):
        settings, net, _ = TRAINED[name]
        env = make_env(settings, num_envs=1)
        actor = QValueActor(q_network(net, env), spec=env.full_action_spec_unbatched["action"])
        env.close()
        save_policy(tmp_path / "policy.safetensors", actor)
        return actor

    return made


@pytest.mark.parametrize("name", TRAINED)
def test_leaves_are_valued_by_the_network_of_a_run(name, trained, start, load, tmp_path, monkeypatch):
    actor, module, seen = trained(name), load("ments"), []
    evaluation = module.evaluation

    def watched(*args):
        evaluate = evaluation(*args)
        return lambda state: (seen.append((args[1].observation(state), evaluate(state))), seen[-1][1])[1]

    monkeypatch.setattr(module, "evaluation", watched)
    short = f"plan={name} env.max_episode_frames={TRAINED[name][2]} algo.tau=0.5"
    rows = start(f"{TINY} {short} algo.policy={tmp_path}")
    assert rows[-1]["event"] == "eval" and len(rows[-1]["returns"]) == 2
    assert [len(observation) for observation, _ in seen[:7]] == [2] * 7  # roots and leaves of both episodes at once
    observation, found = seen[1]
    q = actor.module[0](observation)
    torch.testing.assert_close(found.q, q)
    torch.testing.assert_close(found.value, 0.5 * torch.logsumexp(q / 0.5, -1))
    torch.testing.assert_close(found.prior, (q / 0.5).softmax(-1))


@pytest.mark.parametrize("other", ["acrobot", "minatar"])
def test_a_network_of_another_game_is_refused(other, trained, refused, tmp_path):
    trained("cartpole")
    sentence = "algo.policy must be a run of a Q-network of this environment's 3 actions, got"
    assert sentence in refused(f"{TINY} plan={other} algo.policy={tmp_path}")
