from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl.data import Bounded, Categorical, Composite
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, PolicySettings, policy, q_network
from torchrl_reg.regularizers import Entropy
from torchrl_reg.training import evaluate
from torchrl_reg.training.loop import evaluation


class _Walk(EnvBase):
    """``num`` walks whose lengths are drawn at reset from 1..9; each step is worth its action."""

    def __init__(self, num: int) -> None:
        super().__init__(batch_size=[num])
        self.observation_spec = Composite(observation=Bounded(0, 100, (num, 1), dtype=torch.float32), shape=(num,))
        self.action_spec = Categorical(3, shape=(num,))
        self.reward_spec = Bounded(0, 3, (num, 1), dtype=torch.float32)
        self.generator = torch.Generator()
        self.lengths = torch.ones(num, 1)
        self.steps = torch.zeros(num, 1)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        mask = torch.ones(self.batch_size[0], 1, dtype=torch.bool)
        if tensordict is not None and tensordict.get("_reset", None) is not None:
            mask = tensordict["_reset"].reshape(-1, 1)
        drawn = torch.randint(1, 10, mask.shape, generator=self.generator).float()
        self.lengths = torch.where(mask, drawn, self.lengths)
        self.steps = torch.where(mask, 0.0, self.steps)
        return self._state()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps = self.steps + 1
        state = self._state()
        state["reward"] = tensordict["action"].float().unsqueeze(-1)
        return state

    def _state(self) -> TensorDictBase:
        done = self.steps >= self.lengths
        return TensorDict(
            {"observation": self.lengths.clone(), "done": done, "terminated": done.clone()},
            self.batch_size,
        )


def _always(action: int):
    def policy(state: TensorDictBase) -> TensorDictBase:
        return state.set("action", torch.full(state.batch_size, action))

    return policy


def test_every_environment_counts_its_first_episode_only():
    env = _Walk(200)
    env.set_seed(3)
    lengths: list[float] = []

    def policy(state: TensorDictBase) -> TensorDictBase:
        if not lengths:
            lengths.extend(state["observation"].squeeze(-1).tolist())
        return _always(2)(state)

    columns = evaluate(env, {"greedy": policy}, episodes=200, seed=5)
    expected = 2 * torch.tensor(lengths)
    assert columns["return_greedy_mean"] == pytest.approx(expected.mean().item())
    assert columns["return_greedy_std"] == pytest.approx(expected.std(correction=0).item())
    # Counting whatever ends first would give a mean length of 3.2 rather than 5.
    assert 4.5 < expected.mean() / 2 < 5.5
    assert columns["episodes"] == 200


def test_few_environments_are_reused_for_fresh_episodes():
    seen = []

    def policy(state: TensorDictBase) -> TensorDictBase:
        seen.append(tuple(state["observation"].squeeze(-1).tolist()))
        return _always(1)(state)

    columns = evaluate(_Walk(3), {"greedy": policy}, episodes=7, seed=5)
    assert columns["episodes"] == 7
    assert len({lengths[:3] for lengths in seen}) >= 3


def test_policies_meet_the_same_episodes_each_time():
    env = _Walk(10)
    policies = {"greedy": _always(1), "other": _always(1)}
    first = evaluate(env, policies, episodes=10, seed=5)
    env.rollout(4)
    second = evaluate(env, policies, episodes=10, seed=5)
    for columns in (first, second):
        columns.pop("eval_seconds")
    assert first == second
    assert first["return_greedy_mean"] == first["return_other_mean"]
    assert first != evaluate(env, policies, episodes=10, seed=6)


def test_exploration_types_and_no_gradient():
    seen = {}

    def named(name):
        def policy(state: TensorDictBase) -> TensorDictBase:
            seen[name] = (exploration_type(), torch.is_grad_enabled())
            return _always(0)(state)

        return policy

    policies = {
        "greedy": named("greedy"),
        "sampled": named("sampled"),  # a name says nothing
        "random": (named("random"), ExplorationType.RANDOM),
        "mean": (named("mean"), ExplorationType.MEAN),
    }
    evaluate(_Walk(2), policies, episodes=2, seed=0)
    assert seen == {
        "greedy": (ExplorationType.DETERMINISTIC, False),
        "sampled": (ExplorationType.DETERMINISTIC, False),
        "random": (ExplorationType.RANDOM, False),
        "mean": (ExplorationType.MEAN, False),
    }


def test_the_global_generators_are_left_alone():
    def policy(state: TensorDictBase) -> TensorDictBase:
        np.random.rand(), random.random()
        return state.set("action", torch.randint(3, state.batch_size))

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = (torch.rand(()).item(), np.random.rand(), random.random())
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = evaluate(_Walk(5), {"sampled": policy}, episodes=5, seed=2)
    assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected
    # The sampled actions are reproducible, too.
    again = evaluate(_Walk(5), {"sampled": policy}, episodes=5, seed=2)
    assert again["return_sampled_mean"] == first["return_sampled_mean"]


def test_gymnasium_vectors():
    gymnasium = pytest.importorskip("gymnasium")
    vector = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=5,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED},
    )
    env = GymWrapper(vector, categorical_action_encoding=True)
    columns = evaluate(env, {"greedy": _always(1)}, episodes=5, seed=0)
    assert 8 <= columns["return_greedy_mean"] <= 11  # always to the right: CartPole lasts 8 to 10


def cartpole_policies(env):
    spec = env.full_action_spec_unbatched["action"]
    actor = QValueActor(q_network(NetSettings(num_cells=[16]), env), spec=spec)
    explorer = TensorDictSequential(actor, EGreedyModule(spec, eps_init=0.3))
    boltzmann = BoltzmannQActor(actor, regularizer=Entropy(0.5))
    random = ExplorationType.RANDOM
    return {"greedy": actor, "mode": boltzmann, "sampled": (boltzmann, random), "explorer": (explorer, random)}


def pendulum_policies(env):
    actor = policy(PolicySettings("gaussian", num_cells=[16]), env)
    return {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)}


@pytest.mark.parametrize(
    ("settings", "policies"),
    [(EnvSettings("cartpole"), cartpole_policies), (EnvSettings("pendulum", max_episode_frames=20), pendulum_policies)],
)
def test_stepping_the_vector_environment_itself_gives_the_same_returns(settings, policies, monkeypatch):
    env = make_env(settings, num_envs=4)
    torch.manual_seed(0)
    evaluated = policies(env)
    stepped = []
    monkeypatch.setattr(type(env), "step_and_maybe_reset", lambda *_: stepped.append(1))
    found = evaluate(env, evaluated, episodes=6, seed=3)
    assert not stepped
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "fast_vector", lambda *_, **__: None)
    expected = evaluate(env, evaluated, episodes=6, seed=3)
    assert found.pop("eval_seconds") and expected.pop("eval_seconds")
    assert found == expected
    assert len({found[f"return_{name}_mean"] for name in evaluated if name != "mode"}) > 1
