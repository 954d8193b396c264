"""The gridworld whose goal is part of the observation."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, GoalGridworldEnv, make_env
from torchrl_reg.envs.goal_gridworld import TWO_ROOMS
from torchrl_reg.tabular import gridworld_cells


def test_specs_and_parts() -> None:
    env = make_env(EnvSettings("gridworld", game="goals", max_episode_frames=10), 4)
    check_env_specs(env)
    data = env.rollout(40, break_when_any_done=False)
    assert data["cell"].shape == (4, 40, 27)
    assert torch.equal(data["observation"], torch.cat((data["cell"], data["goal"]), -1))
    assert (data["cell"].sum(-1) == 1).all() and (data["goal"].sum(-1) == 1).all()
    assert data["goal"].argmax(-1).unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(data["goal"], data["next", "goal"])  # stays for an episode


def test_only_the_goal_of_the_episode_ends_it() -> None:
    env = GoalGridworldEnv(8, goals=[1, 3], starts=(13, 15), max_episode_frames=1000)
    env.set_seed(0)
    data = env.rollout(200, break_when_any_done=False)
    ended = data["next", "terminated"].squeeze(-1)
    assert ended.sum() > 10
    assert torch.equal(data["next", "reward"].squeeze(-1), torch.where(ended, 9.0, -1.0))
    goal = data["goal"].argmax(-1)
    assert goal.unique().tolist() == [1, 3]
    starts = data["cell"][:, 1:].argmax(-1)[ended[:, :-1]]
    columns = torch.tensor([column for _, column in gridworld_cells(TWO_ROOMS)])
    assert columns[starts].unique().tolist() == [13, 14, 15]
    places = [data["next", "cell"].argmax(-1)[ended & (goal == g)].unique().tolist() for g in (1, 3)]
    corner = [gridworld_cells(TWO_ROOMS).index(cell) for cell in ((1, 15), (3, 15))]
    assert places == [[corner[0]], [corner[1]]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"goals": [4]}, "goals must be some of 0 to 3, got"),
        ({"goals": []}, "goals must be some of 0 to 3, got"),
        ({"layout": "..."}, "layout must have at least one G"),
        ({"starts": (0, 0)}, "starts must be columns with a free cell"),
    ],
)
def test_bad_arguments(options: dict, sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        GoalGridworldEnv(1, **options)
