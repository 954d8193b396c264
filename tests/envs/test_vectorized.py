"""Environments of every family as TorchRL sees them: keys, seeds, resets, returns."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, frames_per_step, make_env, resolve

with warnings.catch_warnings():
    # torchrl.collectors warns about classes of its own while it is imported
    warnings.filterwarnings("ignore", "Creating .*WeightUpdater ", DeprecationWarning)
    from torchrl.collectors import Collector

# Short episodes, so that later resets happen; much stickiness, so that a stale action shows.
SHORT = {
    "cartpole": EnvSettings("cartpole", max_episode_frames=30),
    "acrobot": EnvSettings("acrobot", max_episode_frames=40),
    "mountaincar": EnvSettings("mountaincar", max_episode_frames=40),
    "lunarlander": EnvSettings("lunarlander", max_episode_frames=60),
    "pendulum": EnvSettings("pendulum", max_episode_frames=13),
    "mountaincar_continuous": EnvSettings("mountaincar_continuous", max_episode_frames=13),
    "multigoal": EnvSettings("multigoal", max_episode_frames=9),
    **{
        game: EnvSettings("minatar", game=game, max_episode_frames=50, sticky_actions=0.5)
        for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    },
    "atari": EnvSettings("atari", game="SpaceInvaders", max_episode_frames=200, noop_max=7),
    **{
        game: EnvSettings("gridworld", game=game, max_episode_frames=20)
        for game in ("corridor", "square", "grid", "goals")
    },
    **{game: EnvSettings("mujoco", game=game, max_episode_frames=25) for game in ("hopper", "humanoid")},
    "door": EnvSettings("adroit", game="door", max_episode_frames=9),
}
# Size of the observation, number of actions or their size and bound, steps after which an episode is truncated.
SPECS = {
    ("cartpole", ""): ((4,), 2, 500),
    ("acrobot", ""): ((6,), 3, 500),
    ("mountaincar", ""): ((2,), 3, 200),
    ("lunarlander", ""): ((8,), 4, 1_000),
    ("minatar", "breakout"): ((4, 10, 10), 3, 10_000),
    ("atari", "pong"): ((4, 84, 84), 6, 108_000),
    ("pendulum", ""): ((3,), (1, 2.0), 200),
    ("mountaincar_continuous", ""): ((2,), (1, 1.0), 999),
    ("multigoal", ""): ((2,), (2, 1.0), 30),
    ("mujoco", "hopper"): ((11,), (3, 1.0), 1_000),
    ("mujoco", "walker2d"): ((17,), (6, 1.0), 1_000),
    ("mujoco", "halfcheetah"): ((17,), (6, 1.0), 1_000),
    ("mujoco", "ant"): ((105,), (8, 1.0), 1_000),
    ("mujoco", "humanoid"): ((348,), (17, 0.4), 1_000),
    ("mujoco", "swimmer"): ((8,), (2, 1.0), 1_000),
    ("mujoco", "reacher"): ((10,), (2, 1.0), 1_000),
    ("mujoco", "inverted_pendulum"): ((4,), (1, 3.0), 1_000),
    ("mujoco", "inverted_double_pendulum"): ((9,), (1, 1.0), 1_000),
    ("adroit", "door"): ((39,), (28, 1.0), 200),
    ("adroit", "hammer"): ((46,), (26, 1.0), 200),
    ("adroit", "pen"): ((45,), (24, 1.0), 200),
    ("adroit", "relocate"): ((39,), (30, 1.0), 200),
}


def assert_identical(a, b):
    leaves = a.keys(True, True)
    assert set(leaves) == set(b.keys(True, True))
    for key in leaves:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(("name", "game"), SPECS, ids=lambda value: value or "-")
def test_specs_and_keys(name, game):
    shape, actions, limit = SPECS[name, game]
    settings = EnvSettings(name, game=game)
    assert resolve(settings).max_episode_frames == limit
    assert frames_per_step(settings) == (4 if name == "atari" else 1)
    env = make_env(settings, 3)
    check_env_specs(env)
    batch = env.rollout(4, break_when_any_done=False)
    if isinstance(actions, int):
        assert env.action_spec.dtype == torch.int64 and env.action_spec.shape == (3,)
        assert env.action_spec_unbatched.n == actions
    else:
        size, bound = actions
        box = env.full_action_spec_unbatched["action"].space
        assert torch.equal(box.high, torch.full((size,), bound)) and torch.equal(box.low, -box.high)
        assert batch["action"].shape == (3, 4, size) and batch["action"].dtype == torch.float32
    for observation in (batch["observation"], batch["next", "observation"]):
        assert observation.shape == (3, 4, *shape)
        assert observation.dtype == (torch.uint8 if len(shape) == 3 else torch.float32)
    for key in ("reward", "done", "terminated", "truncated", "episode_reward"):
        assert batch["next", key].shape == (3, 4, 1)
    assert batch["next", "reward"].dtype == torch.float32


@pytest.mark.parametrize("family", SHORT)
def test_a_seed_determines_everything_after_it(family, restart, walk):
    fresh, used = make_env(SHORT[family], 2), make_env(SHORT[family], 2)
    walk(used, used.reset(), 23, seed=5)
    expected, _ = walk(fresh, restart(fresh, 7), 65)
    got, _ = walk(used, restart(used, 7), 65)
    assert expected["next", "done"].sum() >= 2  # later resets are part of what was compared
    assert_identical(expected, got)
    assert not torch.equal(expected["observation"][0], expected["observation"][1])
    other, _ = walk(used, restart(used, 8), 65)
    assert not torch.equal(other["observation"], expected["observation"])


@pytest.mark.parametrize(
    ("settings", "gym_id"),
    [
        (EnvSettings("cartpole"), "CartPole-v1"),
        (EnvSettings("pendulum"), "Pendulum-v1"),
        (EnvSettings("mujoco", game="hopper"), "Hopper-v5"),
        (EnvSettings("adroit", game="pen"), "AdroitHandPen-v1"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_value_equals_a_plain_gymnasium_loop(settings, gym_id, restart, walk):
    settings.max_episode_frames = 25
    env = make_env(settings, 2)
    batch, _ = walk(env, restart(env, 3), 60)
    assert batch["next", "done"].sum() >= 4
    for i, seed in enumerate((3, 4)):  # as gymnasium seeds the members of a vector
        single = gymnasium.make(gym_id, max_episode_steps=25)
        single.reset(seed=seed)  # set_seed resets, and so does what follows it
        observation, _ = single.reset()
        episode_reward = torch.zeros(1)
        for t in range(60):
            row = batch[i, t]
            assert np.array_equal(row["observation"], observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = single.step(row["action"].numpy())
            episode_reward += torch.tensor([reward], dtype=torch.float32)
            # at an episode's end too: this is its last observation
            assert np.array_equal(row["next", "observation"], observation.astype(np.float32))
            assert row["next", "reward"].item() == np.float32(reward)
            assert row["next", "terminated"].item() == terminated
            assert row["next", "truncated"].item() == truncated
            assert row["next", "done"].item() == (terminated or truncated)
            assert torch.equal(row["next", "episode_reward"], episode_reward)
            if terminated or truncated:
                observation, _ = single.reset()
                episode_reward = torch.zeros(1)


@pytest.mark.parametrize("family", ["cartpole", "atari", "square", "goals", "multigoal"])
def test_a_partial_reset_leaves_the_other_episodes_alone(family, restart, walk):
    env = make_env(SHORT[family], 3)
    _, state = walk(env, restart(env, 0), 6)
    before = state.clone()
    mask = torch.tensor([[False], [True], [False]])
    state = env.reset(state.set("_reset", mask))
    assert torch.equal(state["observation"][::2], before["observation"][::2])
    assert not torch.equal(state["observation"][1], before["observation"][1])
    assert torch.equal(state["episode_reward"], before["episode_reward"] * ~mask)
    if "steps" in before.keys():  # noqa: SIM118
        assert before["steps"].min() > 0 and torch.equal(state["steps"], before["steps"] * ~mask)
    walk(env, state, 3)


@pytest.mark.parametrize("family", ["cartpole", "breakout", "atari", "grid"])
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


def test_cartpole_terminates_by_falling_and_truncates_at_500(restart, walk):
    env = make_env(EnvSettings("cartpole"), 2)
    state = restart(env, 0)
    for _ in range(500):
        x, dx, angle, dangle = state["observation"].unbind(-1)
        push_right = angle + 0.5 * dangle + 0.02 * x + 0.05 * dx > 0
        stepped, state = env.step_and_maybe_reset(state.set("action", push_right.long()))
    assert stepped["next", "truncated"].all() and not stepped["next", "terminated"].any()
    assert (stepped["next", "episode_reward"] == 500).all()
    batch, _ = walk(env, state, 60)
    ended = batch["next", "done"].squeeze(-1)
    assert ended.any() and not batch["next", "truncated"].any()
    x, _, angle, _ = batch["next", "observation"][ended].unbind(-1)
    assert ((x.abs() > 2.4) | (angle.abs() > 0.2095)).all()


@pytest.mark.parametrize("name", ["acrobot", "mountaincar", "mountaincar_continuous"])
def test_pumping_energy_reaches_the_goal_which_terminates(name, restart):
    env = make_env(EnvSettings(name), 4)
    state = restart(env, 0)
    for _ in range(300):
        velocity = state["observation"][:, 4 if name == "acrobot" else 1]
        push = velocity.sign().unsqueeze(-1)
        if name != "mountaincar_continuous":
            push = torch.where(velocity > 0, *((0, 2) if name == "acrobot" else (2, 0)))
        stepped, state = env.step_and_maybe_reset(state.set("action", push))
        if stepped["next", "done"].any():
            break
    ended = stepped["next", "done"]
    assert stepped["next", "terminated"][ended].all() and not stepped["next", "truncated"].any()
    reward = stepped["next", "reward"][ended]
    assert (
        (reward > 99).all() if name == "mountaincar_continuous" else (reward == (0 if name == "acrobot" else -1)).all()
    )


def test_lunarlander_terminates_by_a_crash(restart, walk):
    lander = make_env(EnvSettings("lunarlander"), 2)
    batch, _ = walk(lander, restart(lander, 0), 150)
    assert batch["next", "terminated"].any() and not batch["next", "truncated"].any()
    assert (batch["next", "reward"][batch["next", "terminated"]] == -100).all()


def test_an_unavailable_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(EnvError, match="device must be an available device, got 'cuda'"):
        make_env(EnvSettings("cartpole"), 2, device="cuda")


@pytest.mark.gpu
def test_tensors_live_on_the_device_asked_for(restart, walk):
    on_gpu, on_cpu = (make_env(SHORT["cartpole"], 2, device=d) for d in ("cuda", "cpu"))
    check_env_specs(on_gpu)
    start = restart(on_gpu, 0)
    assert start["observation"].is_cuda
    got, _ = walk(on_gpu, start, 60)
    expected, _ = walk(on_cpu, restart(on_cpu, 0), 60)
    assert_identical(got.cpu(), expected)
