"""The sign of Adroit's reaching term."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest

from torchrl_reg.envs.adroit import adroit_env
from torchrl_reg.envs.snapshot import RecordedVectorEnv


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
