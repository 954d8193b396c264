"""Finite MDPs as TorchRL environments, gridworlds among them, also with an observed goal."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvSettings, GoalGridworldEnv, TabularEnv, make_env
from torchrl_reg.envs.gridworld import TWO_ROOMS
from torchrl_reg.tabular import MIRL_WORLDS, TabularMDP, gridworld, gridworld_cells, random_mdp

UP, RIGHT, DOWN, LEFT = range(4)


@pytest.mark.parametrize("game", MIRL_WORLDS)
def test_the_goal_terminates_with_9_and_every_other_step_gives_minus_1(game, restart, walk):
    env = make_env(EnvSettings("gridworld", game=game), 20)
    mdp = gridworld(MIRL_WORLDS[game], 0.9)
    batch, _ = walk(env, restart(env, 0), 400)
    step = batch["next"]
    assert torch.equal(batch["observation"], torch.nn.functional.one_hot(batch["state"], mdp.num_states).float())
    at_goal = mdp.terminal[step["state"]].unsqueeze(-1)
    assert at_goal.any() and torch.equal(step["terminated"], at_goal)
    assert torch.equal(step["reward"], torch.where(at_goal, 9.0, -1.0))
    # The MDP's own transitions, which are deterministic here ...
    assert torch.equal(step["state"], mdp.P.argmax(-1)[batch["state"], batch["action"]])
    # ... but for restarts, after which the episode counts from zero.
    done = step["done"].squeeze(-1)
    assert torch.equal(batch["state"][:, 1:][~done[:, :-1]], step["state"][:, :-1][~done[:, :-1]])
    assert (batch["steps"][:, 1:][done[:, :-1]] == 0).all() and not mdp.terminal[batch["state"]].any()
    assert torch.equal(step["steps"], batch["steps"] + 1)


def test_the_time_limit_truncates_and_does_not_hide_the_goal(restart, walk):
    env = make_env(EnvSettings("gridworld", game="corridor", max_episode_frames=3), 2)
    state = restart(env, 0)
    state["state"] = torch.tensor([16, 2])  # three steps from the goal, and far from it
    step = walk(env, state, torch.full((3, 2), RIGHT))[0]["next"]
    assert step["truncated"].squeeze(-1).tolist() == [[False, False, True]] * 2
    assert step["terminated"][:, -1].tolist() == [[True], [False]] and step["done"][:, -1].all()
    assert step["episode_reward"][:, -1].tolist() == [[7.0], [-3.0]]
    assert step["state"][:, -1].tolist() == [19, 5]  # where the episodes ended


def test_starts_and_transitions_follow_their_probabilities(restart):
    def frequency(states):
        return torch.bincount(states, minlength=5) / len(states)

    mdp = random_mdp(5, 3, 0.9, seed=1, branching=3)
    mdp = TabularMDP(mdp.P, mdp.r, 0.9, torch.tensor([False, False, True, False, False]))
    start = torch.tensor([0.5, 0.2, 0.0, 0.0, 0.3])
    env = TabularEnv(mdp, 40_000, max_episode_frames=10, start=start)
    state = restart(env, 0)
    torch.testing.assert_close(frequency(state["state"]), start, rtol=0, atol=0.01)
    stepped = env.step(state.set("action", torch.full((40_000,), 2)))["next"]
    for first in (0, 1, 4):
        found = frequency(stepped["state"][state["state"] == first])
        torch.testing.assert_close(found.double(), mdp.P[first, 2], rtol=0, atol=0.03)
        assert not found[mdp.P[first, 2] == 0].any()
    assert torch.equal(stepped["reward"].squeeze(-1), mdp.r[state["state"], 2].float())
    uniform = TabularEnv(mdp, 40_000, max_episode_frames=10).reset()["state"]
    expected = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25])
    torch.testing.assert_close(frequency(uniform), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_a_state_of_probability_zero_is_not_drawn_even_at_the_ends(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, u, dtype=torch.float64))
    env = TabularEnv(gridworld(["G.G"], 0.9), 2, max_episode_frames=5)  # 0 probability before and after the middle
    state = env.reset()
    assert state["state"].tolist() == [1, 1]
    assert env.step(state.set("action", torch.tensor([RIGHT, LEFT])))["next", "state"].tolist() == [2, 0]
    # Nor is one after probabilities that sum to less than 1 by rounding.
    P = torch.tensor([0.5, 0.5 - 9e-7, 0.0], dtype=torch.float64).expand(3, 1, 3)
    env = TabularEnv(TabularMDP(P, torch.zeros(3, 1), 0.9), 1, max_episode_frames=9)
    step = env.step(env.reset().set("action", torch.tensor([0])))
    assert step["next", "state"].tolist() == [0 if u == 0.0 else 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_envs": 0}, "num_envs must be an int >= 1, got 0"),
        ({"max_episode_frames": 0}, "max_episode_frames must be an int >= 1, got 0"),
        ({"start": torch.ones(2)}, r"start must have shape \[S\] = \[3\], got \[2\]"),
        ({"start": torch.tensor([1.5, -0.5, 0.0])}, "start must be a probability distribution"),
        ({"start": torch.tensor([0.5, 0.0, 0.5])}, "start must be 0 at terminal states"),
    ],
)
def test_bad_arguments_of_a_tabular_environment(options, sentence):
    arguments = {"num_envs": 1, "max_episode_frames": 5} | options
    with pytest.raises(match=sentence):
        TabularEnv(gridworld(["..G"], 0.9), **arguments)


# -- goals that are observed ----------------------------------------------------------------------------------------


def test_specs_and_parts_of_a_goal_gridworld() -> None:
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
def test_bad_arguments_of_a_goal_gridworld(options: dict, sentence: str) -> None:
    with pytest.raises(match=sentence):
        GoalGridworldEnv(1, **options)
