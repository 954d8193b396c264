"""MuJoCo's tasks leave no files and warnings behind; the sign of Adroit's reach term."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from torchrl_reg.envs.mujoco import adroit_env
from torchrl_reg.envs.snapshot import RecordedVectorEnv


def test_building_prints_nothing_and_leaves_no_file(tmp_path):
    code = (
        "from torchrl_reg.envs import EnvSettings, make_env\n"
        "for name, game in (('mujoco', 'halfcheetah'), ('adroit', 'door')):\n"
        "    make_env(EnvSettings(name, game=game), 2).rollout(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def palm_to_object(hand, game):
    sites, bodies = hand.data.site_xpos, hand.data.xpos
    if game == "door":
        return np.linalg.norm(sites[hand.grasp_site_id] - sites[hand.handle_site_id])
    return np.linalg.norm(sites[hand.S_grasp_site_id] - bodies[hand.obj_body_id])


@pytest.mark.parametrize("game", ["door", "hammer", "relocate"])
def test_adroit_rewards_reaching(game):
    """The documented term is -0.1 |palm - object|; release 1.4.2 of gymnasium-robotics has +0.1 there."""
    hands = RecordedVectorEnv(partial(adroit_env, game=game, max_episode_frames=50), 1)
    plain = gymnasium.make(f"AdroitHand{game.capitalize()}-v1")
    hands.action_space.seed(0)
    hands.reset(seed=[1])
    plain.reset(seed=1)
    for _ in range(20):
        action = hands.action_space.sample()
        rewards, reward = hands.step(action)[1], plain.step(action[0])[1]
        distance = palm_to_object(hands.envs[0].unwrapped, game)
        assert distance > 0.05
        assert rewards[0] == pytest.approx(reward - 0.2 * distance, abs=1e-9)
