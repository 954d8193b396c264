"""The multi-goal point against hand-computed steps."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.envs import EnvSettings, MultiGoalEnv, make_env


@pytest.mark.parametrize(
    ("state", "action", "following", "reward", "terminated"),
    [
        ([0.0, 0.0], [0.5, 0.0], [0.5, 0.0], -30 * 0.25 - 4.5**2, False),
        ([0.0, 3.5], [0.0, 0.6], [0.0, 4.1], -30 * 0.36 - 0.9**2 + 10, True),
        ([-4.0, 0.0], [0.0, 0.0], [-4.0, 0.0], -1.0, False),  # at distance 1 exactly it is not there
        ([6.5, -6.5], [1.0, -1.0], [7.0, -7.0], -60.0 - (2**2 + 7**2), False),
        ([0.0, -2.0], [0.0, -5.0], [0.0, -3.0], -30 - 4.0, False),  # an action is cut to the box
    ],
)
def test_a_step_by_hand(
    state: list[float], action: list[float], following: list[float], reward: float, terminated: bool
) -> None:
    data = {"observation": torch.tensor([state]), "steps": torch.tensor([[28]]), "action": torch.tensor([action])}
    out = MultiGoalEnv(1).step(TensorDict(data, [1]))["next"]
    torch.testing.assert_close(out["observation"], torch.tensor([following]))
    torch.testing.assert_close(out["reward"], torch.tensor([[reward]]))
    assert out["terminated"].item() == out["done"].item() == terminated and not out["truncated"].item()


def test_the_game_names_the_goals() -> None:
    origin = torch.tensor([[1.0, 0.0]])
    for game, distance in (("", 16.0), ("up", 26.0), ("up_left", 26.0), ("left_down", 26.0), ("right_up", 16.0)):
        assert MultiGoalEnv(1, game=game).distance(origin).item() == distance
    assert make_env(EnvSettings("multigoal", game="left"), 1).distance(origin).item() == 36.0
    with pytest.raises(match="game must join names of right, left, up, down by _, got 'north'"):
        make_env(EnvSettings("multigoal", game="north"), 1)


def test_episodes_start_at_the_origin_and_are_truncated() -> None:
    env = make_env(EnvSettings("multigoal", max_episode_frames=4), 2000)
    rollout = env.rollout(4, lambda td: td.set("action", torch.zeros(2000, 2)))
    first = rollout["observation"][:, 0]
    assert abs(first.std() - 0.1) < 0.01 and first.abs().max() < 0.6
    assert rollout["next", "truncated"][:, -1].all() and not rollout["next", "terminated"].any()
    # 25 - 10 E max(|x|, |y|) + E|s|^2 a step, at s of standard deviation .1: E max = .2 / sqrt(pi).
    assert rollout["next", "episode_reward"][:, -1].mean() == pytest.approx(-4 * 23.89, abs=0.4)
