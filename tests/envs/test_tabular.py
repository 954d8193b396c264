"""A finite MDP as a TorchRL environment, and the gridworlds made of it."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, TabularEnv, make_env
from torchrl_reg.tabular import MIRL_WORLDS, TabularMDP, gridworld, gridworld_cells, random_mdp

UP, RIGHT, DOWN, LEFT = range(4)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("game", MIRL_WORLDS)
def test_specs_and_keys(game, num_envs):
    env = make_env(EnvSettings("gridworld", game=game), num_envs)
    check_env_specs(env)
    num_states = len(gridworld_cells(MIRL_WORLDS[game]))
    batch = env.rollout(4, break_when_any_done=False)
    assert batch["observation"].shape == (num_envs, 4, num_states) and batch["observation"].dtype == torch.float32
    assert torch.equal(batch["observation"].argmax(-1), batch["state"])
    assert (batch["observation"].sum(-1) == 1).all()
    assert env.action_spec.shape == (num_envs,) and env.action_spec_unbatched.n == 4
    for key in ("reward", "done", "terminated", "truncated", "episode_reward"):
        assert batch["next", key].shape == (num_envs, 4, 1)


@pytest.mark.parametrize("game", MIRL_WORLDS)
def test_the_goal_terminates_with_9_and_every_other_step_gives_minus_1(game, restart, walk):
    env = make_env(EnvSettings("gridworld", game=game), 20)
    mdp = gridworld(MIRL_WORLDS[game], 0.9)
    batch, _ = walk(env, restart(env, 0), 400)
    step = batch["next"]
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


def test_the_time_limit_truncates_and_does_not_hide_the_goal(restart):
    env = make_env(EnvSettings("gridworld", game="corridor", max_episode_frames=3), 2)
    state = restart(env, 0)
    state["state"] = torch.tensor([16, 2])  # three steps from the goal, and far from it
    for step in range(1, 4):
        stepped, state = env.step_and_maybe_reset(state.set("action", torch.full((2,), RIGHT)))
        assert (stepped["next", "truncated"] == (step == 3)).all()
    assert stepped["next", "terminated"].tolist() == [[True], [False]]
    assert stepped["next", "done"].all() and stepped["next", "episode_reward"].tolist() == [[7.0], [-3.0]]
    assert stepped["next", "state"].tolist() == [19, 5]  # where the episodes ended


def test_starts_and_transitions_follow_their_probabilities(restart):
    mdp = random_mdp(5, 3, 0.9, seed=1, branching=3)
    mdp = TabularMDP(mdp.P, mdp.r, 0.9, torch.tensor([False, False, True, False, False]))
    start = torch.tensor([0.5, 0.2, 0.0, 0.0, 0.3])
    env = TabularEnv(mdp, 40_000, max_episode_frames=10, start=start)
    state = restart(env, 0)
    frequency = torch.bincount(state["state"], minlength=5) / 40_000
    torch.testing.assert_close(frequency, start, rtol=0, atol=0.01)
    stepped = env.step(state.set("action", torch.full((40_000,), 2)))
    for first in (0, 1, 4):
        found = stepped["next", "state"][state["state"] == first]
        frequency = torch.bincount(found, minlength=5) / len(found)
        torch.testing.assert_close(frequency.double(), mdp.P[first, 2], rtol=0, atol=0.03)
        assert not frequency[mdp.P[first, 2] == 0].any()
    torch.testing.assert_close(
        stepped["next", "reward"].squeeze(-1).double(), mdp.r[state["state"], 2], atol=1e-6, rtol=0
    )
    uniform = TabularEnv(mdp, 40_000, max_episode_frames=10).reset()["state"]
    expected = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25])
    torch.testing.assert_close(torch.bincount(uniform, minlength=5) / 40_000, expected, rtol=0, atol=0.01)


def test_a_state_of_probability_zero_is_not_drawn_even_at_the_ends(monkeypatch):
    mdp = gridworld(["G.G"], 0.9)  # starts in the middle: 0 probability before and after
    for u in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *size, u=u, **_: torch.full(size, u, dtype=torch.float64))
        env = TabularEnv(mdp, 2, max_episode_frames=5)
        state = env.reset()
        assert state["state"].tolist() == [1, 1]
        assert env.step(state.set("action", torch.tensor([RIGHT, LEFT])))["next", "state"].tolist() == [2, 0]


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
def test_bad_arguments(options, sentence):
    arguments = {"num_envs": 1, "max_episode_frames": 5} | options
    with pytest.raises(EnvError, match=sentence):
        TabularEnv(gridworld(["..G"], 0.9), **arguments)


def test_probabilities_that_sum_to_less_than_one_by_rounding_draw_a_state_they_may():
    P = torch.tensor([0.5, 0.5 - 9e-7, 0.0], dtype=torch.float64).expand(3, 1, 3)
    env = TabularEnv(TabularMDP(P, torch.zeros(3, 1), 0.9), 1, max_episode_frames=9)
    assert env._transition[0, 0].tolist()[1:] == [1.0, 1.0]  # what is drawn is below 1, and so never the last
