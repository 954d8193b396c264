"""Emulators as models: gymnasium copies, ALE's saved states, and what cannot be planned in."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchrl_reg.envs import EnvSettings, MinAtar, make_env
from torchrl_reg.planning import UCT, AtariModel, GymModel, QEvaluation, RandomRollout, TabularModel, VectorModel
from torchrl_reg.regularizers import Entropy, HardMax
from torchrl_reg.tabular import TabularMDP


def cartpole() -> GymModel:
    return GymModel(gymnasium.make("CartPole-v1"))


def test_a_copied_environment_follows_the_real_one() -> None:
    model, real = cartpole(), gymnasium.make("CartPole-v1").unwrapped
    state = model.reset(2, seed=3)
    seen, _ = real.reset(seed=4)  # the second episode
    assert np.array_equal(model.observation(state)[1].numpy(), seen)
    terminated = False
    while not terminated:
        reward, state, ended = model.step(state[-1:], torch.tensor([1]))
        seen, real_reward, terminated, _, _ = real.step(1)
        assert np.array_equal(model.observation(state)[0].numpy(), seen)
        assert (reward.item(), ended.item()) == (real_reward, terminated)


def test_a_state_can_be_left_twice() -> None:
    model = cartpole()
    start = model.reset(1, seed=0)
    _, left, _ = model.step(start, torch.tensor([0]))
    _, right, _ = model.step(start, torch.tensor([1]))
    _, again, _ = model.step(start, torch.tensor([0]))
    assert torch.equal(model.observation(left), model.observation(again))
    assert not torch.equal(model.observation(left), model.observation(right))
    mark = model.mark()
    _, later, _ = model.step(right, torch.tensor([1]))
    assert model.num_snapshots == 5
    model.release(mark)
    assert model.num_snapshots == 4
    model.release(0, keep=left)
    assert model.num_snapshots == 1 and torch.equal(model.observation(left), model.observation(left))
    with pytest.raises(KeyError):
        model.observation(later)
    reward, state, ended = model.step(left[:0], torch.zeros(0, dtype=torch.int64))
    assert len(reward) == len(state) == len(ended) == 0


def minatar(game: str, num_envs: int = 1, sticky_actions: float = 0.2) -> MinAtar:
    settings = {"sticky_actions": sticky_actions, "minimal_actions": True, "difficulty_ramping": True}
    return MinAtar(num_envs, game=game, max_episode_frames=10**9, **settings)


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_a_restored_game_follows_the_real_one_whatever_is_searched_between(game: str) -> None:
    model, real = VectorModel(minatar(game)), minatar(game)
    state = model.reset(2, seed=6)[1:]  # the second episode
    seen, _ = real.reset(seed=7)
    for step in range(60):
        assert np.array_equal(model.observation(state), seen)
        action = step % model.num_actions
        model.step(state.expand(3), torch.arange(3) % model.num_actions)
        reward, state, ended = model.step(state, torch.tensor([action]))
        seen, real_reward, terminated, _, _ = real.step(np.array([action]))
        assert (reward.item(), ended.item()) == (real_reward[0], terminated[0])
        if ended:
            break
    assert step > 5


def test_a_truncated_episode_of_a_restored_game_ends() -> None:
    env = MinAtar(
        1, game="freeway", max_episode_frames=3, sticky_actions=0.0, minimal_actions=True, difficulty_ramping=True
    )
    model = VectorModel(env)
    found = UCT(num_simulations=40)(model, model.reset(1, seed=0))
    assert (found.tree.children[0] >= 0).any(-1).any(-1).sum() == 1 + 3 + 9  # three actions deep


def test_a_rollout_is_the_discounted_return_until_the_end() -> None:
    P = torch.zeros(4, 1, 4)
    P[[0, 1, 2, 3], 0, [1, 2, 3, 3]] = 1.0
    mdp = TabularMDP(P, torch.tensor([[1.0], [2.0], [4.0], [8.0]]), 0.9, torch.tensor([False, False, False, True]))
    for max_steps, longest in ((9, 1 + 0.5 * 2 + 0.25 * 4), (2, 1 + 0.5 * 2)):
        found = RandomRollout(TabularModel(mdp), max_steps=max_steps, gamma=0.5)(torch.tensor([2, 0, 2, 1]))
        assert found.value.tolist() == [4.0, longest, 4.0, 2 + 0.5 * 4]


def test_rollouts_leave_no_snapshots() -> None:
    model = cartpole()
    UCT(num_simulations=5)(model, model.reset(2, seed=0), evaluate=RandomRollout(model, max_steps=7))
    assert model.num_snapshots == 2 * (1 + 5)


class Uncopied(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)

    def __deepcopy__(self, memo: dict) -> Any:
        raise TypeError("cannot pickle 'SwigPyObject' object")


class Shared(gymnasium.Env):
    """Its copies count on one list."""

    action_space = gymnasium.spaces.Discrete(2)
    count: list[int] = [0]

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(1), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count[0] += 1
        return np.array([float(self.count[0])]), 0.0, False, False, {}


class Named(Shared):
    """Its observations are a Dict."""

    observation_space = gymnasium.spaces.Dict({"seen": gymnasium.spaces.Box(-1.0, 1.0, (2,))})

    def reset(self, **_: Any) -> tuple[dict, dict]:
        return {"seen": np.zeros(2)}, {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GymModel(Named()), r"give arrays as observations \(FlattenObs.*, got Named with Dict\('seen': Box"),
        (lambda: GymModel(gymnasium.make("Pendulum-v1")), "env must have discrete actions, got Pendulum-v1 with Box"),
        (lambda: GymModel(Uncopied()), r"copy.deepcopy can clone, got Uncopied \(TypeError: cannot pickle"),
        (lambda: GymModel(Shared()), "env must be one whose copies are independent, got Shared, two copies of which"),
        (lambda: VectorModel(minatar("breakout", 2)), "env must hold one copy, got MinAtar with 2"),
        (
            lambda: VectorModel(gymnasium.make_vec("CartPole-v1")),
            "env must be one that can be restored from a snapshot",
        ),
        (lambda: AtariModel("brekout"), "game must be an Atari game such as breakout, got 'brekout'"),
        (lambda: AtariModel("pong", frame_skip=0), "frame_skip must be at least 1, got 0"),
        (lambda: AtariModel("pong", num_emulators=0), "num_emulators must be at least 1, got 0"),
        (lambda: AtariModel("pong", frame_stack=0), "frame_stack must be at least 1, got 0"),
        (lambda: AtariModel("pong", noop_max=-1), "noop_max must be at least 0, got -1"),
        (lambda: AtariModel("pong", sticky_actions=1.0), r"sticky_actions must be a probability in \[0, 1\), got 1.0"),
    ],
)
def test_what_cannot_be_planned_in_is_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_atari_sees_what_the_training_environment_shows() -> None:
    settings = EnvSettings("atari", game="Breakout", sticky_actions=0.0, noop_max=0)
    env, model = make_env(settings, num_envs=1), AtariModel("Breakout", noop_max=0)
    row, state = env.reset(), model.reset(1, seed=0)
    assert model.num_actions == env.full_action_spec_unbatched["action"].space.n
    total = 0.0
    for step in range(60):
        ours, theirs = model.observation(state)[0], row["observation"][0]
        assert ours.shape == theirs.shape == (4, 84, 84) and ours.dtype == torch.uint8
        assert (ours.int() - theirs.int()).abs().max() <= 1  # OpenCV rounds otherwise
        action = torch.tensor([(1, 2, 2, 3)[step % 4] if step % 7 else 1])
        row = env.step(row.set("action", action))["next"]
        reward, state, ended = model.step(state, action)
        assert row["reward"].item() == model.raw_reward(state).item() and row["terminated"].item() == ended.item()
        total += reward.item()
    env.close()


def test_atari_branches_and_clips() -> None:
    model = AtariModel("SpaceInvaders", observe=False)
    state = model.reset(2, seed=0)
    with pytest.raises(ValueError, match="observe must be True for a model whose states are looked at, got False"):
        model.observation(state)
    fire = torch.tensor([1, 1])

    def played(first: torch.Tensor) -> list[list[float]]:
        rewards, at = [], first
        for _ in range(150):
            reward, at, _ = model.step(at, fire)
            assert torch.equal(reward, model.raw_reward(at).sign())
            rewards.append(model.raw_reward(at).tolist())
        return rewards

    once = played(state)
    assert once == played(state)
    one, two = zip(*once, strict=True)
    assert max(one + two) > 1 and one != two  # the no-ops of the second seed shift its game


def test_sticky_actions_come_from_the_generator() -> None:
    generator = torch.Generator()
    model = AtariModel("Breakout", observe=False, sticky_actions=0.5, generator=generator, noop_max=0)
    assert model.stochastic and model.num_outcomes == 1
    start = model.reset(1, seed=0)

    def saved(seed: int) -> list[Any]:
        generator.manual_seed(seed)
        state = start
        for action in (1, 2, 2, 2, 3, 3, 3):
            _, state, _ = model.step(state, torch.tensor([action]))
        emulator = model._pool[0]
        emulator._ale.restoreState(emulator._saved[model._snapshots[int(state)].saved[1]][0])
        return emulator._ale.getRAM().tolist()

    assert saved(1) == saved(1) != saved(2)


def test_a_pool_of_emulators_plays_as_one() -> None:
    """The same rewards, images and ends whichever process plays; states that are released are gone there, too."""
    records = []
    for num_emulators in (1, 2):
        generator = torch.Generator().manual_seed(0)
        model = AtariModel("Breakout", sticky_actions=0.3, generator=generator, num_emulators=num_emulators)
        state, record = model.reset(3, seed=4), []
        for step in range(30):
            reward, after, ended = model.step(state[[0, 1, 2, 1]], torch.tensor([1, 3, 2, step % 4]))
            record.append((reward.tolist(), ended.tolist(), model.observation(after)))
            state = after[[0, 2, 3]]
            model.release(0, keep=state)
        records.append(record)
        if num_emulators == 1:
            model.step(state, torch.tensor([0, 0, 0]))
            assert len(model._pool[0]._saved) == 3 + 3
        else:
            assert {saved.saved[0] for saved in model._snapshots.values()} == {0, 1}
            processes = [emulator._process for emulator in model._pool]
            assert [process.poll() for process in processes] == [None, None]
            processes[0].kill()
            with pytest.raises(RuntimeError, match="The process of an emulator ended with exit code -9"):
                model.step(state, torch.tensor([0, 0, 0]))
    del model
    assert [process.poll() for process in processes] == [-9, 0]
    for (reward, ended, seen), (pooled, pooled_ended, pooled_seen) in zip(*records, strict=True):
        assert reward == pooled and ended == pooled_ended and torch.equal(seen, pooled_seen)
    assert not torch.equal(records[0][-1][2][0], records[0][-1][2][1])


def test_a_network_values_leaves() -> None:
    network = torch.nn.Linear(3, 4).double()
    observation = torch.randn(5, 3, dtype=torch.float64)
    soft = QEvaluation(network, Entropy(0.5), observe=lambda state: observation[state])
    found, q = soft(torch.tensor([4, 1])), network(observation[[4, 1]])
    assert found.q is not None and found.prior is not None
    assert torch.equal(found.q, q) and torch.allclose(found.value, 0.5 * torch.logsumexp(q / 0.5, -1))
    assert torch.allclose(found.prior, (q / 0.5).softmax(-1))
    hard = QEvaluation(network, HardMax(), prior_tau=0.3, use_q=False)(observation)
    assert hard.q is None and torch.equal(hard.value, network(observation).amax(-1))
    assert hard.prior is not None and torch.allclose(hard.prior, (network(observation) / 0.3).softmax(-1))


def test_the_model_does_not_touch_what_it_was_given() -> None:
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=1)
    before = copy.deepcopy(env.unwrapped.state)
    model = GymModel(env)
    model.step(model.reset(1, seed=5), torch.tensor([1]))
    assert np.array_equal(env.unwrapped.state, before)
