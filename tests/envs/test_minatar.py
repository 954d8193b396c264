from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.minatar import GAMES, MinAtarGame

# Channels and size of the minimal action set of each game, from the MinAtar README.
SIZES = {
    "asterix": (4, 5),
    "breakout": (4, 3),
    "freeway": (7, 3),
    "seaquest": (10, 6),
    "space_invaders": (6, 4),
}


@pytest.mark.parametrize("game", GAMES)
def test_sizes_and_binary_images(game):
    channels, num_actions = SIZES[game]
    env = make_env(EnvSettings("minatar", game=game), 2)
    assert env.action_spec_unbatched.n == num_actions
    observation = env.rollout(10, break_when_any_done=False)["next", "observation"]
    assert observation.shape == (2, 10, channels, 10, 10) and observation.dtype == torch.uint8
    assert observation.max() == 1
    full = make_env(EnvSettings("minatar", game=game, minimal_actions=False), 2)
    assert full.action_spec_unbatched.n == 6


def test_the_paddle_moves_by_the_minimal_actions():
    game = MinAtarGame("breakout", sticky_actions=0.0)
    paddle = game.reset(seed=0)[0][0, 9]  # channel 0 is the paddle, row 9 the bottom
    columns = [paddle.argmax()]
    for action in (1, 2, 0):  # left, right, stay
        columns.append(game.step(action)[0][0, 9].argmax())
    assert np.array_equal(np.diff(columns), [-1, 1, 0])


def test_stickiness_and_ramping_reach_the_game():
    sticky = MinAtarGame("breakout", sticky_actions=1.0)
    sticky.reset(seed=0)
    before = sticky.step(1)[0][0, 9]
    assert np.array_equal(before, sticky.step(2)[0][0, 9])  # every action repeats the first no-op
    flat, ramped = (MinAtarGame("asterix", difficulty_ramping=r) for r in (False, True))
    assert not flat._game.env.ramping and ramped._game.env.ramping


def test_losing_the_ball_terminates_and_the_limit_truncates(restart):
    env = make_env(EnvSettings("minatar", game="breakout", sticky_actions=0.0), 4)
    state = restart(env, 0)
    still = torch.zeros(4, dtype=torch.int64)
    for _ in range(100):
        stepped, state = env.step_and_maybe_reset(state.set("action", still))
        if stepped["next", "done"].any():
            break
    ended = stepped["next", "done"]
    assert ended.any() and stepped["next", "terminated"][ended].all()
    assert not stepped["next", "truncated"].any()

    freeway = make_env(EnvSettings("minatar", game="freeway", max_episode_frames=37), 2)
    truncated = freeway.rollout(80, break_when_any_done=False)["next", "truncated"]
    assert truncated.squeeze(-1).nonzero().tolist() == [[0, 36], [0, 73], [1, 36], [1, 73]]
