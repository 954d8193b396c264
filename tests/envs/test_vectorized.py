from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, make_env

with warnings.catch_warnings():
    # torchrl.collectors warns about classes of its own while it is imported
    warnings.filterwarnings("ignore", "Creating .*WeightUpdater ", DeprecationWarning)
    from torchrl.collectors import Collector

# Short episodes, so that later resets happen; much stickiness, so that a stale action shows.
SHORT = {
    "cartpole": EnvSettings("cartpole", max_episode_frames=30),
    "acrobot": EnvSettings("acrobot", max_episode_frames=40),
    "lunarlander": EnvSettings("lunarlander", max_episode_frames=90),
    **{
        game: EnvSettings("minatar", game=game, max_episode_frames=50, sticky_actions=0.5)
        for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    },
    "atari": EnvSettings("atari", game="SpaceInvaders", max_episode_frames=200, noop_max=7),
}
OBSERVATIONS = {
    "cartpole": (4,),
    "acrobot": (6,),
    "lunarlander": (8,),
    "breakout": (4, 10, 10),
    "atari": (4, 84, 84),
}


def play(env, start, steps, seed=0):
    """The steps of fixed actions from ``start`` on, stacked along time, and the next start."""
    generator = torch.Generator().manual_seed(seed)
    history, current = [], start
    for _ in range(steps):
        num_actions = env.action_spec_unbatched.n
        action = torch.randint(num_actions, env.batch_size, generator=generator)
        stepped, current = env.step_and_maybe_reset(current.set("action", action))
        history.append(stepped.clone())
    return torch.stack(history, 1), current


def assert_identical(a, b):
    leaves = a.keys(True, True)
    assert set(leaves) == set(b.keys(True, True))
    for key in leaves:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("family", OBSERVATIONS)
def test_specs_and_keys(family):
    env = make_env(SHORT[family], 3)
    check_env_specs(env)
    assert env.batch_size == (3,)
    assert env.action_spec.dtype == torch.int64 and env.action_spec.shape == (3,)
    batch = env.rollout(4, break_when_any_done=False)
    for key in ("reward", "done", "terminated", "truncated", "episode_reward"):
        assert batch["next", key].shape == (3, 4, 1)
    assert set(batch["next"].keys()) == {
        *("observation", "reward", "done", "terminated", "truncated", "episode_reward")
    }
    image = len(OBSERVATIONS[family]) == 3
    assert batch["observation"].shape == (3, 4, *OBSERVATIONS[family])
    assert batch["observation"].dtype == (torch.uint8 if image else torch.float32)
    assert env.observation_spec_unbatched["observation"].shape == OBSERVATIONS[family]


@pytest.mark.parametrize("family", SHORT)
def test_a_seed_determines_everything_after_it(family, restart):
    fresh, used = make_env(SHORT[family], 2), make_env(SHORT[family], 2)
    _, current = play(used, used.reset(), 23, seed=5)
    expected, _ = play(fresh, restart(fresh, 7), 130)
    got, _ = play(used, restart(used, 7), 130)
    assert expected["next", "done"].sum() >= 2  # later resets are part of what was compared
    assert_identical(expected, got)
    assert not torch.equal(expected["observation"][0], expected["observation"][1])
    other, _ = play(used, restart(used, 8), 130)
    assert not torch.equal(other["observation"], expected["observation"])


@pytest.mark.parametrize("family", ["cartpole", "breakout"])
def test_every_value_equals_a_plain_gymnasium_loop(family, restart, package_game):
    env = make_env(SHORT[family], 2)
    batch, _ = play(env, restart(env, 3), 120)
    assert batch["next", "terminated"].sum() > 4
    for i in range(2):
        if family == "cartpole":
            single = gymnasium.make("CartPole-v1", max_episode_steps=30)
        else:
            single = gymnasium.wrappers.TimeLimit(package_game("breakout", sticky_actions=0.5), 50)
        single.reset(seed=3 + i)
        observation, _ = single.reset()
        episode_reward = 0.0
        for t in range(120):
            row = batch[i, t]
            assert np.array_equal(row["observation"], observation)
            observation, reward, terminated, truncated, _ = single.step(row["action"].item())
            episode_reward += reward
            assert np.array_equal(row["next", "observation"], observation)
            assert row["next", "reward"].item() == reward
            assert row["next", "terminated"].item() == terminated
            assert row["next", "truncated"].item() == truncated
            assert row["next", "done"].item() == (terminated or truncated)
            assert row["next", "episode_reward"].item() == episode_reward
            if terminated or truncated:
                observation, _ = single.reset()
                episode_reward = 0.0


def test_episode_reward_of_atari_restarts_with_the_episode(restart):
    env = make_env(EnvSettings("atari", game="ms_pacman", max_episode_frames=480), 2)
    batch, _ = play(env, restart(env, 0), 250)
    returns = torch.zeros(2, 1)
    for t in range(250):
        returns = returns + batch["next", "reward"][:, t]
        assert torch.equal(batch["next", "episode_reward"][:, t], returns)
        returns = torch.where(batch["next", "done"][:, t], 0.0, returns)
    assert batch["next", "reward"].max() >= 10  # a pellet: rewards are not clipped


def test_cartpole_terminates_by_falling_and_truncates_at_500(restart):
    env = make_env(EnvSettings("cartpole"), 2)
    state = restart(env, 0)
    for _ in range(500):
        x, dx, angle, dangle = state["observation"].unbind(-1)
        push_right = angle + 0.5 * dangle + 0.02 * x + 0.05 * dx > 0
        stepped, state = env.step_and_maybe_reset(state.set("action", push_right.long()))
    assert stepped["next", "truncated"].all() and not stepped["next", "terminated"].any()
    assert (stepped["next", "episode_reward"] == 500).all()
    batch, _ = play(env, state, 60)
    ended = batch["next", "done"].squeeze(-1)
    assert ended.any() and not batch["next", "truncated"].any()
    x, _, angle, _ = batch["next", "observation"][ended].unbind(-1)
    assert ((x.abs() > 2.4) | (angle.abs() > 0.2095)).all()


def test_acrobot_and_lunarlander_terminate(restart):
    acrobot = make_env(EnvSettings("acrobot"), 2)
    state = restart(acrobot, 0)
    for _ in range(300):
        # torque along the first joint's velocity pumps energy into the swing
        action = torch.where(state["observation"][:, 4] > 0, 0, 2)
        stepped, state = acrobot.step_and_maybe_reset(state.set("action", action))
        if stepped["next", "done"].any():
            break
    ended = stepped["next", "done"]
    assert stepped["next", "terminated"][ended].all() and not stepped["next", "truncated"].any()

    lander = make_env(EnvSettings("lunarlander"), 2)
    batch, _ = play(lander, restart(lander, 0), 150)
    assert batch["next", "terminated"].any() and not batch["next", "truncated"].any()
    assert (batch["next", "reward"][batch["next", "terminated"]] == -100).all()


@pytest.mark.parametrize("family", ["cartpole", "breakout", "atari"])
def test_a_running_collector_starts_afresh_from_a_seed(family, restart):
    def collector():
        env = make_env(SHORT[family], 2)
        layers = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.LazyLinear(env.action_spec_unbatched.n))
        torch.manual_seed(1)
        layers(env.reset()["observation"].float())

        def act(observation):
            return layers(observation.float()).argmax(-1)

        policy = TensorDictModule(act, ["observation"], ["action"])
        return Collector(env, policy, frames_per_batch=60, auto_register_policy_transforms=False)

    runs = []
    for batches_before in (0, 3):
        data = collector()
        batches = iter(data)
        for _ in range(batches_before):
            next(batches)
        data.env.set_seed(11)  # as a run does at a checkpoint
        data.reset()
        run = torch.cat([next(batches) for _ in range(4)], 1)
        trajectories = run.pop("collector")["traj_ids"]
        # the episodes after the reset are new trajectories
        assert (trajectories[:, 0] >= 2).all()
        assert len(trajectories.unique()) == run["next", "done"][:, :-1].sum() + 2
        runs.append(run)
        data.shutdown()
    assert runs[0]["next", "done"].any()
    assert_identical(*runs)
    first = restart(make_env(SHORT[family], 2), 11)
    assert torch.equal(runs[0]["observation"][:, 0], first["observation"])


def test_a_partial_reset_leaves_the_other_episodes_alone(restart):
    for family in ("cartpole", "atari"):
        env = make_env(SHORT[family], 3)
        _, state = play(env, restart(env, 0), 12)
        before = state.clone()
        mask = torch.tensor([[False], [True], [False]])
        state = env.reset(state.set("_reset", mask))
        assert torch.equal(state["observation"][::2], before["observation"][::2])
        assert not torch.equal(state["observation"][1], before["observation"][1])
        assert torch.equal(state["episode_reward"], before["episode_reward"] * ~mask)
        play(env, state, 5)


def test_an_unavailable_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(EnvError, match="device must be an available device, got 'cuda'"):
        make_env(EnvSettings("cartpole"), 2, device="cuda")


@pytest.mark.gpu
def test_tensors_live_on_the_device_asked_for(restart):
    on_gpu, on_cpu = (make_env(SHORT["cartpole"], 2, device=d) for d in ("cuda", "cpu"))
    check_env_specs(on_gpu)
    start = restart(on_gpu, 0)
    assert start["observation"].is_cuda
    got, _ = play(on_gpu, start, 60)
    expected, _ = play(on_cpu, restart(on_cpu, 0), 60)
    assert_identical(got.cpu(), expected)
