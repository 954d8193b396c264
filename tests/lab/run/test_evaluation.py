"""Evaluations: first episodes only, the same ones each time, and without an effect on training.

And the evaluated policy in the run folder.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Categorical, Composite
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import RunSettings, evaluate
from torchrl_reg.lab.run import evaluation
from torchrl_reg.lab.run.evaluation import PolicyFile
from torchrl_reg.modules import (
    ActorSequential,
    BoltzmannQActor,
    EpsilonGreedyModule,
    NetSettings,
    PolicySettings,
    QActor,
    policy,
    q_network,
)
from torchrl_reg.regularizers import Entropy


class _Walk(EnvBase):
    """``num`` walks whose lengths, which are observed, are drawn at reset from 1..9; each step is worth its action."""

    def __init__(self, num: int) -> None:
        super().__init__(batch_size=[num])
        self.observation_spec = Composite(observation=Bounded(0, 100, (num, 1), dtype=torch.float32), shape=(num,))
        self.action_spec = Categorical(3, shape=(num,))
        self.reward_spec = Bounded(0, 3, (num, 1), dtype=torch.float32)
        self.generator, self.lengths, self.steps = torch.Generator(), torch.ones(num, 1), torch.zeros(num, 1)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.tensor(True) if mask is None else mask.reshape(-1, 1)
        drawn = torch.randint(1, 10, self.lengths.shape, generator=self.generator).float()
        self.lengths, self.steps = torch.where(mask, drawn, self.lengths), torch.where(mask, 0.0, self.steps)
        return self._state()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps = self.steps + 1
        return self._state().set("reward", tensordict["action"].float().unsqueeze(-1))

    def _state(self) -> TensorDictBase:
        done = self.steps >= self.lengths
        state = {"observation": self.lengths.clone(), "done": done, "terminated": done.clone()}
        return TensorDict(state, self.batch_size)


class _Always:
    """One action, and the lengths ``[N]`` of the walks that it sees."""

    def __init__(self, action: int) -> None:
        self.action, self.seen = action, list[torch.Tensor]()

    def __call__(self, state: TensorDictBase) -> TensorDictBase:
        self.seen.append(state["observation"].squeeze(-1).clone())
        return state.set("action", torch.full(state.batch_size, self.action))


def test_every_environment_counts_its_first_episode_only():
    policy = _Always(2)
    columns = evaluate(_Walk(200), {"greedy": policy}, episodes=200, seed=5)
    expected = 2 * policy.seen[0]
    assert columns["return_greedy_mean"] == pytest.approx(expected.mean().item())
    assert columns["return_greedy_std"] == pytest.approx(expected.std(correction=0).item())
    # Counting the episodes that end first would give a mean length of 3.2 rather than 5.
    assert 4.5 < expected.mean() / 2 < 5.5
    assert columns["episodes"] == 200


def test_few_environments_are_reused_for_fresh_episodes():
    """The first ones do not depend on how many follow."""
    means = [evaluate(_Walk(3), {"a": _Always(1)}, episodes=n, seed=5)["return_a_mean"] for n in (3, 7)]
    policy = _Always(1)
    assert evaluate(_Walk(3), {"a": policy}, episodes=7, seed=5)["return_a_mean"] == means[1] != means[0]
    # A round begins where a walk of the round before lasted longest.
    starts, rounds = [0], []
    for _ in range(3):
        rounds.append(policy.seen[starts[-1]])
        starts.append(starts[-1] + int(rounds[-1].max()))
    assert torch.cat(rounds)[:7].mean().item() == pytest.approx(means[1])
    assert rounds[0].mean().item() == pytest.approx(means[0])
    assert len({tuple(lengths.tolist()) for lengths in rounds}) == 3


def test_policies_meet_the_same_episodes_each_time():
    def found(seed: int) -> dict[str, float]:
        columns = evaluate(env, {"greedy": _Always(1), "other": _Always(1)}, episodes=10, seed=seed)
        return {name: value for name, value in columns.items() if name != "eval_seconds"}

    env = _Walk(10)
    first = found(5)
    env.rollout(4)
    assert found(5) == first != found(6)
    assert first["return_greedy_mean"] == first["return_other_mean"]


def test_exploration_types_and_no_gradient():
    seen = []

    def policy(state: TensorDictBase) -> TensorDictBase:
        seen.append((exploration_type(), torch.is_grad_enabled()))
        return state.set("action", torch.zeros(state.batch_size, dtype=torch.int64))

    mode, sampled, mean = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM, ExplorationType.MEAN
    for evaluated, kind in ((policy, mode), ((policy, sampled), sampled), ((policy, mean), mean)):
        evaluate(_Walk(2), {"sampled": evaluated}, episodes=2, seed=0)  # a name has no effect
        assert set(seen) == {(kind, False)}
        seen.clear()


def test_the_global_generators_are_left_alone():
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    def policy(state: TensorDictBase) -> TensorDictBase:
        draws()
        return state.set("action", torch.randint(3, state.batch_size))

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first, again = (evaluate(_Walk(5), {"sampled": policy}, episodes=5, seed=2)["return_sampled_mean"] for _ in "ab")
    assert draws() == expected and first == again


def cartpole_policies(env):
    spec = env.full_action_spec_unbatched["action"]
    actor = QActor(q_network(NetSettings(num_cells=[16]), env), spec=spec)
    explorer = ActorSequential(actor, EpsilonGreedyModule(spec, eps_init=0.3))
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
    with monkeypatch.context() as patched:
        patched.setattr(type(env), "step_and_maybe_reset", lambda *_: pytest.fail("stepped by TorchRL"))
        found = evaluate(env, evaluated, episodes=6, seed=3)
    monkeypatch.setattr(evaluation, "fast_vector", lambda *_, **__: None)
    expected = evaluate(env, evaluated, episodes=6, seed=3)
    assert found.pop("eval_seconds") and expected.pop("eval_seconds")
    assert found == expected
    assert len({found[f"return_{name}_mean"] for name in evaluated if name != "mode"}) > 1


def test_networks_are_in_eval_mode_and_learn_on_in_train_mode():
    seen, env = [], make_env(EnvSettings("cartpole"), 2)
    actor = QValueActor(q_network(NetSettings(num_cells=[8], noise_sigma=0.5), env), spec=Categorical(2))
    for module in actor.modules():
        module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    evaluate(env, {"greedy": actor}, episodes=2, seed=0)
    assert seen and not any(seen) and all(module.training for module in actor.modules())


def test_a_policy_that_could_not_be_loaded_is_told_once(tmp_path) -> None:
    said: list[str] = []
    file = PolicyFile(tmp_path, SimpleNamespace(run=RunSettings()))
    own = TensorDictModule(nn.Linear(4, 2), ["observation"], ["action"])
    for frames in (100, 200):
        file.write({"greedy": own}, {"event": "eval", "frames": frames}, said.append)
    assert len(said) == 1 and said[0].startswith("policy not saved: no description of ")
    assert not list(tmp_path.iterdir())
