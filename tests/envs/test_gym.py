"""Environments with a gymnasium id, gymnasium's own and those that a user's module registers."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchrl_reg.envs import EnvSettings, RecordedVectorEnv, make_env, resolve
from torchrl_reg.envs.settings import check_imported
from torchrl_reg.lab.run.checkpoint import restorable_part
from torchrl_reg.modules import NetSettings, PolicySettings, policy, q_network


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])


def own(name: str, **fields: Any) -> EnvSettings:
    return EnvSettings("gym", f"Own/{name}-v0", import_module="own_worlds", **fields)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("Vector", (3,), torch.float32),
        ("Matrix", (6,), torch.float32),
        ("Switches", (4,), torch.float32),
        ("Dials", (5,), torch.float32),
        ("Colour", (3, 84, 84), torch.uint8),
        ("Stacked", (4, 84, 84), torch.uint8),
        ("Gray", (1, 84, 84), torch.uint8),
        ("Small", (4, 10, 10), torch.uint8),
        ("Large", (3, 96, 96), torch.float32),
    ],
)
def test_observations_are_vectors_or_images_with_the_channels_first(name: str, shape: Any, dtype: Any) -> None:
    env = make_env(own(name), 2)
    for see in (env.reset, lambda: env.rand_step(env.reset())["next"]):
        seen = see()
        assert seen["observation"].shape == (2, *shape) and seen["observation"].dtype == dtype
        for row, world in zip(seen["observation"], env.base_env._env.envs, strict=True):
            raw, space = world.unwrapped.last, world.unwrapped.observation_space
            if isinstance(space, gymnasium.spaces.Box):
                moved = np.moveaxis(raw, -1, 0) if raw.ndim == 3 and name != "Stacked" else raw
                expected = np.reshape(moved, shape).astype(row.numpy().dtype)
            else:
                expected = np.asarray(gymnasium.spaces.flatten(space, raw), np.float32)
            assert np.array_equal(row, expected)


def test_one_hot_states_and_arguments() -> None:
    env = make_env(EnvSettings("gym", "FrozenLake-v1", kwargs={"is_slippery": False}), 2)
    down, right = 1, 2
    actions = iter([down, down, right, right, down, right])
    batch = env.rollout(6, lambda td: td.set("action", torch.full((2,), next(actions))))
    assert torch.equal(batch["next", "observation"].argmax(-1), torch.tensor([4, 8, 9, 10, 14, 15]).expand(2, 6))
    assert torch.equal(batch["next", "observation"].sum(-1), torch.ones(2, 6))
    assert batch["next", "reward"][:, -1].tolist() == [[1.0], [1.0]] and batch["next", "terminated"][:, -1].all()


def test_actions_are_those_of_the_environment() -> None:
    env = make_env(own("Vector"), 2)  # its actions are 5, 6 and 7
    assert env.step(env.reset().set("action", torch.tensor([0, 2])))["next", "reward"].tolist() == [[5], [7]]
    env = make_env(own("Matrix"), 2)
    box = env.full_action_spec_unbatched["action"].space
    assert torch.equal(box.high, torch.tensor([0.3, 0.7])) and torch.equal(box.low, torch.tensor([-0.1, -0.1]))
    assert float(box.high[0]) > 0.3  # so that the world's own check would refuse it
    taken = env.step(env.reset().set("action", torch.stack([box.low, box.high])))
    assert taken["next", "reward"].flatten().tolist() == pytest.approx([-0.1, 0.3])


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        (EnvSettings("gym", "Acrobot-v1"), 500),
        (EnvSettings("gym", "Acrobot-v1", max_episode_frames=7), 7),
        (own("Endless", max_episode_frames=3), 3),
    ],
)
def test_the_time_limit_is_that_of_the_id_or_of_the_settings(settings: EnvSettings, limit: int) -> None:
    assert resolve(settings).max_episode_frames == limit
    settings.validate()
    env = make_env(settings, 1)
    batch = env.rollout(min(limit, 9), break_when_any_done=False)
    assert batch["next", "truncated"].flatten().tolist()[: limit + 1] == [t + 1 == limit for t in range(min(limit, 9))]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (EnvSettings("gym"), "game must be a gymnasium id, such as 'CartPole-v1', got ''"),
        (EnvSettings("gym", "FrozenLak-v1"), "got 'FrozenLak-v1'. Did you mean 'FrozenLake-v1'?"),
        (EnvSettings("gym", "Own2/V-v0"), "got 'Own2/V-v0'. A package that registers it goes in env.import_module."),
        (EnvSettings("gym", "os:Vector-v0"), "game must be a gymnasium id"),
        (EnvSettings("gym", "CartPole-v1", frame_stack=4), "frame_stack must be unset for 'gym', got 4"),
        (
            EnvSettings("gym", "CartPole-v1", kwargs={"x": 1}),
            "kwargs must be arguments of 'CartPole-v1', got {'x': 1}: T",
        ),
        (own("Vector", kwargs={"word": "new"}), "kwargs must be .*: KeyError: 'new'"),
        (
            own("Vector", kwargs=[1]),
            r"kwargs must be a mapping of .* got \[1\]",
        ),
        (EnvSettings("cartpole", kwargs={"x": 1}), "kwargs must be empty for 'cartpole', got {'x': 1}"),
        (own("Dict"), "Box, Discrete, MultiDiscrete or MultiBinary space, got 'Own/Dict-v0' with Dict"),
        (own("Tuple"), "got 'Own/Tuple-v0' with Tuple: gymnasium.wrappers.FlattenObservation"),
        (own("Several"), "game must have Discrete actions or a Box of real ones, got 'Own/Several-v0' with MultiDisc"),
        (own("Whole"), "game must have Discrete actions or a Box of real ones, got 'Own/Whole-v0' with Box"),
        (own("Endless"), "max_episode_frames must be set for 'Own/Endless-v0', which has no time limit, got None"),
        (EnvSettings("gym", "A-v0", import_module="own_word"), "import_module must be a module that is .* 'own_word'"),
        (EnvSettings("gym", "A-v0", import_module="a b"), "import_module must be the name of a module, .* got 'a b'"),
        (EnvSettings("CartPole-v1"), "got 'CartPole-v1'. Did you mean env=gym env.game=CartPole-v1?"),
    ],
)
def test_what_is_refused_in_one_sentence(settings: EnvSettings, sentence: str) -> None:
    with pytest.raises(match=sentence) as error:
        make_env(settings, 1)
    assert "\n" not in str(error.value)


def test_a_package_that_an_environment_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    with pytest.raises(match="can be built here, got 'LunarLander-v3': DependencyNotInstalled: Box2D is not"):
        make_env(EnvSettings("gym", "LunarLander-v3"), 1)


def test_what_a_file_names_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_worlds", raising=False)
    with pytest.raises(match="import_module of a saved policy must be .* got 'own_worlds'"):
        check_imported(own("Vector"))
    assert "own_worlds" not in sys.modules


@pytest.mark.parametrize(
    ("settings", "is_restorable"),
    [
        (EnvSettings("gym", "FrozenLake-v1"), True),
        (EnvSettings("gym", "Pendulum-v1"), True),
        (own("Vector"), True),
        (own("Vector", kwargs={"draws_from": "own"}), False),
        (own("Vector", kwargs={"draws_from": "seeded"}), False),  # a reset without a seed continues it
        (own("Vector", kwargs={"draws_from": "seeded", "length": 99}), False),
        (own("Random"), False),
    ],
)
def test_what_does_not_repeat_itself_is_not_stored(settings: EnvSettings, is_restorable: bool) -> None:
    env = make_env(settings, 2)
    assert (restorable_part(env) is not None) == is_restorable
    assert isinstance(env.base_env._env, RecordedVectorEnv) == is_restorable
    env.rollout(30, break_when_any_done=False)


@pytest.mark.parametrize(
    ("name", "net", "sentence"),
    [
        ("Colour", "nature", ""),
        ("Stacked", "impala", ""),
        ("Small", "minatar", ""),
        ("Colour", "mlp", "must fit observations of shape .3, 84, 84., got 'mlp': net=nature or net=impala."),
        ("Small", "nature", "must fit observations of shape .4, 10, 10., got 'nature': net=minatar."),
        (
            "Discrete96",
            "nature",
            r"images must be 10x10 \(net=minatar\) or 84x84 \(net=nature, net=impala\).",
        ),
    ],
)
def test_images_need_a_network_for_their_size(name: str, net: str, sentence: str) -> None:
    env = make_env(own(name), 2)
    if sentence:
        with pytest.raises(ValueError, match=sentence):
            q_network(NetSettings(net, num_cells=[8]), env)
    else:
        assert q_network(NetSettings(net, num_cells=[8]), env)(env.reset()["observation"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("Large", r"observations that are vectors, got shape \[3, 96, 96\]"), ("Unbounded", "finite low and high")],
)
def test_policies_name_what_they_do_not_take(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        policy(PolicySettings("gaussian"), make_env(own(name), 2))
