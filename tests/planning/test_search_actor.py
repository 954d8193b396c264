"""A planner in collectors, environments and evaluations."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import TabularEnv
from torchrl_reg.lab import evaluate
from torchrl_reg.planning import MENTS, UCT, AtariModel, GymModel, ModelEnv, SearchActor, TabularModel
from torchrl_reg.tabular import chain


def test_it_acts_in_a_collector_and_leaves_targets() -> None:
    mdp = chain(4, gamma=0.9)
    generator = torch.Generator().manual_seed(0)
    planner = MENTS(tau=0.02, epsilon=0.3, num_simulations=100, gamma=0.9)
    actor = SearchActor(planner, TabularModel(mdp), generator=generator)
    env = TabularEnv(mdp, num_envs=2, max_episode_frames=9)
    (batch,) = Collector(env, actor, frames_per_batch=8, total_frames=8, auto_register_policy_transforms=False)
    assert (batch["action"] == 1).all() and batch["root_value"].shape == (2, 4)
    assert batch["root_q"].shape == batch["root_policy"].shape == batch["root_visits"].shape == (2, 4, 2)
    assert batch["root_q"].dtype == torch.float32 and batch["action"].dtype == torch.int64
    assert (batch["root_visits"].sum(-1) == 100).all()
    before_goal = batch["state"] == 2
    assert before_goal.any() and (batch["root_q"][before_goal][:, 1] == 1).all()


def test_untried_actions_are_worth_the_root() -> None:
    actor = SearchActor(
        UCT(num_simulations=1, gamma=0.9), TabularModel(chain(4, 0.9, step_reward=-0.3)), state_key=("a", "s")
    )
    row = actor(TensorDict({("a", "s"): torch.tensor([[1], [2]])}, [2, 1]))
    assert actor.in_keys == [("a", "s")] and row["action"].shape == (2, 1)
    assert torch.equal(row["root_q"][..., 1], row["root_value"]) and (row["root_q"] == -0.3).all()


def test_a_model_is_an_environment() -> None:
    model = GymModel(gymnasium.make("CartPole-v1"))
    env = ModelEnv(model, num_envs=3, max_episode_steps=12)
    check_env_specs(env)
    env.set_seed(5)
    torch.manual_seed(0)  # draws the actions
    batch = env.rollout(40, break_when_any_done=False)
    after = batch["next"]
    assert (after["truncated"] == (after["steps"] >= 12)).all() and after["truncated"].any()
    assert (after["done"] == (after["terminated"] | after["truncated"])).all() and after["terminated"].any()
    ended = after["done"][:, :-1].squeeze(-1)
    assert (batch["steps"][:, 1:].squeeze(-1)[ended] == 0).all() and model.num_snapshots <= 6
    expected = torch.as_tensor(gymnasium.make("CartPole-v1").reset(seed=6)[0])
    env.set_seed(5)
    assert torch.equal(env.reset()["observation"][1], expected)
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        ModelEnv(model, num_envs=0, max_episode_steps=3)


def test_it_is_evaluated_and_forgets_its_searches() -> None:
    model = AtariModel("Pong", observe=False)
    env = ModelEnv(model, num_envs=2, max_episode_steps=6)
    assert "observation" not in env.observation_spec
    actor = SearchActor(UCT(num_simulations=5, gamma=0.99), model)
    columns = evaluate(env, {"greedy": actor}, episodes=2, seed=0)
    assert columns["return_greedy_mean"] <= 0 and model.num_snapshots <= 4
    before, state = model.num_snapshots, model.reset(1, seed=0)
    actor(TensorDict({"state": state}, [1]))
    assert model.num_snapshots == before + 1


def test_a_single_state_may_have_no_batch_dimension() -> None:
    actor = SearchActor(UCT(num_simulations=4, gamma=0.9), TabularModel(chain(4, 0.9)))
    row = actor(TensorDict({"state": torch.tensor(1)}, []))
    assert row["action"].shape == row["root_value"].shape == () and row["root_q"].shape == (2,)
