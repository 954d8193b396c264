"""The gridworld whose goal is part of the observation."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, GoalGridworldEnv, make_env
from torchrl_reg.envs.goal_gridworld import TWO_ROOMS
from torchrl_reg.tabular import gridworld_cells


def test_specs_and_parts() -> None:
    env = GoalGridworldEnv(4, max_episode_frames=10)
    check_env_specs(env)
    data = env.rollout(40, break_when_any_done=False)
    torch.testing.assert_close(data["observation"], torch.cat((data["cell"], data["goal"]), -1))
    assert (data["cell"].sum(-1) == 1).all() and (data["goal"].sum(-1) == 1).all()
    assert set(data["goal"].argmax(-1).unique().tolist()) == {0, 1, 2, 3}
    # The goal stays for an episode.
    stays = data["goal"].eq(data["next", "goal"]).all(-1)
    assert stays.all()


def test_only_the_goal_of_the_episode_ends_it() -> None:
    env = GoalGridworldEnv(8, goals=[1, 3], starts=(13, 15), max_episode_frames=1000)
    env.set_seed(0)
    data = env.rollout(200, break_when_any_done=False)
    ended = data["next", "terminated"].squeeze(-1)
    assert ended.sum() > 10
    assert (data["next", "reward"].squeeze(-1)[ended] == 9).all()
    assert (data["next", "reward"].squeeze(-1)[~ended] == -1).all()
    goal = data["goal"].argmax(-1)
    assert set(goal.unique().tolist()) == {1, 3}
    starts = data["cell"][:, 1:].argmax(-1)[ended[:, :-1]]
    columns = torch.tensor([column for _, column in gridworld_cells(TWO_ROOMS)])
    assert columns[starts].unique().tolist() == [13, 14, 15]
    place = {g: set(data["next", "cell"].argmax(-1)[ended & (goal == g)].tolist()) for g in (1, 3)}
    assert [len(place[g]) for g in (1, 3)] == [1, 1] and place[1] != place[3]


def test_by_name_and_bad_goals() -> None:
    env = make_env(EnvSettings("gridworld", game="goals", max_episode_frames=20), 2)
    assert env.reset()["cell"].shape == (2, 27) and "episode_reward" in env.reset().keys()  # noqa: SIM118
    for goals in ([4], []):
        with pytest.raises(EnvError, match="goals must be some of 0 to 3"):
            GoalGridworldEnv(1, goals=goals)
