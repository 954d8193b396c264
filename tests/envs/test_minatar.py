from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.minatar import GAMES, MinAtar
from torchrl_reg.envs.minatar_drawing import DRAWINGS
from torchrl_reg.envs.space_invaders import SpaceInvaders

# Channels and size of the minimal action set of each game, from the MinAtar README.
SIZES = {
    "asterix": (4, 5),
    "breakout": (4, 3),
    "freeway": (7, 3),
    "seaquest": (10, 6),
    "space_invaders": (6, 4),
}


@pytest.mark.parametrize("game", GAMES)
def test_sizes_and_binary_images(game):
    channels, num_actions = SIZES[game]
    env = make_env(EnvSettings("minatar", game=game), 2)
    assert env.action_spec_unbatched.n == num_actions
    observation = env.rollout(10, break_when_any_done=False)["next", "observation"]
    assert observation.shape == (2, 10, channels, 10, 10) and observation.dtype == torch.uint8
    assert observation.max() == 1
    full = make_env(EnvSettings("minatar", game=game, minimal_actions=False), 2)
    assert full.action_spec_unbatched.n == 6


def one_game(game, **changes):
    settings = {"sticky_actions": 0.0, "minimal_actions": True, "difficulty_ramping": True} | changes
    return MinAtar(1, game=game, max_episode_frames=1_000, **settings)


def test_the_paddle_moves_by_the_minimal_actions():
    game = one_game("breakout")
    paddle = game.reset(seed=0)[0][0, 0, 9]  # channel 0 is the paddle, row 9 the bottom
    columns = [paddle.argmax()]
    for action in (1, 2, 0):  # left, right, stay
        columns.append(game.step(np.array([action]))[0][0, 0, 9].argmax())
    assert np.array_equal(np.diff(columns), [-1, 1, 0])


def test_stickiness_and_ramping_reach_the_game():
    sticky = one_game("breakout", sticky_actions=1.0)
    before = sticky.reset(seed=0)[0][0, 0, 9]
    for action in (1, 2, 1):
        assert np.array_equal(before, sticky.step(np.array([action]))[0][0, 0, 9])  # all repeat the first no-op
    sticky._games[0].last_action = 1  # as an episode before may leave it
    before = sticky.reset(seed=0)[0][0, 0, 9]
    assert np.array_equal(before, sticky.step(np.array([1]))[0][0, 0, 9])
    flat, ramped = (one_game("asterix", difficulty_ramping=r)._games[0].env for r in (False, True))
    assert not flat.ramping and ramped.ramping


def test_losing_the_ball_terminates_and_the_limit_truncates(restart):
    env = make_env(EnvSettings("minatar", game="breakout", sticky_actions=0.0), 4)
    state = restart(env, 0)
    still = torch.zeros(4, dtype=torch.int64)
    for _ in range(100):
        stepped, state = env.step_and_maybe_reset(state.set("action", still))
        if stepped["next", "done"].any():
            break
    ended = stepped["next", "done"]
    assert ended.any() and stepped["next", "terminated"][ended].all()
    assert not stepped["next", "truncated"].any()

    freeway = make_env(EnvSettings("minatar", game="freeway", max_episode_frames=37), 2)
    truncated = freeway.rollout(80, break_when_any_done=False)["next", "truncated"]
    assert truncated.squeeze(-1).nonzero().tolist() == [[0, 36], [0, 73], [1, 36], [1, 73]]


def play_beside_the_package(game, package_game, steps, num_envs, ramping, minimal):
    """Plays the same actions in both; copies that shoot or dodge get further. Returns what was seen."""
    limit, sticky = 400, 0.2
    ours = MinAtar(
        num_envs,
        game=game,
        max_episode_frames=limit,
        sticky_actions=sticky,
        minimal_actions=minimal,
        difficulty_ramping=ramping,
    )

    def build():
        single = package_game(game, sticky_actions=sticky, minimal_actions=minimal, ramping=ramping)
        return TimeLimit(single, max_episode_steps=limit)

    theirs = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    rng = np.random.default_rng(5)
    got, expected = ours.reset(seed=7)[0], theirs.reset(seed=7)[0]
    seen = {"reward": 0.0, "terminated": 0, "truncated": 0}
    for step in range(steps):
        assert got.dtype == np.uint8 and np.array_equal(got, expected)
        actions = rng.integers(ours.single_action_space.n, size=num_envs)
        if step % 800 < 400:
            # Each copy has a favourite: some shoot, some cross the road.
            favourites = np.arange(num_envs) % ours.single_action_space.n
            actions = np.where(rng.uniform(size=num_envs) < 0.7, favourites, actions)
        got, reward, *flags, _ = ours.step(actions)
        expected, their_reward, *their_flags, _ = theirs.step(actions)
        assert np.array_equal(got, expected)
        assert np.array_equal(reward, their_reward) and np.array_equal(flags, their_flags)
        seen["reward"] += reward.sum()
        seen["terminated"] += flags[0].sum()
        seen["truncated"] += flags[1].sum()
        mask = flags[0] | flags[1]
        if mask.any():
            got = ours.reset(options={"reset_mask": mask})[0]
            expected = theirs.reset(options={"reset_mask": mask})[0]
    return seen


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("minimal", [True, False])
def test_every_step_is_that_of_the_package(game, minimal, package_game):
    seen = play_beside_the_package(game, package_game, 1_000, num_envs=3, ramping=minimal, minimal=minimal)
    assert seen["reward"] > 0
    assert (seen["truncated"] if game == "freeway" else seen["terminated"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_a_hundred_thousand_steps_are_those_of_the_package(game, package_game):
    seen = play_beside_the_package(game, package_game, 20_000, num_envs=5, ramping=True, minimal=True)
    assert seen["reward"] > 100


def board(cells):
    """The integer of a board ``[10, 10]``, as SpaceInvaders holds it."""
    return int.from_bytes(cells.astype(np.uint8).tobytes(), "little")


def test_space_invaders_is_the_package_s_from_any_state(package_game):
    """Few aliens, aliens at the edges and at the bottom, timers at zero: states that play seldom reaches."""
    theirs = package_game("space_invaders", sticky_actions=0.0).game.env
    rng = np.random.default_rng(0)
    cleared = 0
    for trial in range(2_000):
        ours = SpaceInvaders(ramping=bool(trial % 2))
        theirs.reset()
        theirs.ramping = ours.ramping
        density = rng.choice([0.02, 0.1, 0.5])
        maps = [(rng.uniform(size=(10, 10)) < p).astype(float) for p in (density, 0.3, 0.1)]
        maps[0][rng.integers(10), rng.integers(10)] = 1
        numbers = {
            "pos": int(rng.integers(10)),
            "alien_dir": int(rng.choice([-1, 1])),
            "enemy_move_interval": int(rng.integers(6, 13)),
            "alien_move_timer": int(rng.integers(2)),
            "alien_shot_timer": int(rng.integers(2)),
            "shot_timer": int(rng.integers(2)),
        }
        theirs.alien_map, theirs.f_bullet_map, theirs.e_bullet_map = maps
        ours.aliens, ours.friendly_bullets, ours.enemy_bullets = (board(m) for m in maps)
        for name, value in numbers.items():
            setattr(ours, name, value)
            setattr(theirs, name, value)
        action = int(rng.integers(6))
        assert ours.act(action) == theirs.act(action)
        assert (ours.aliens, ours.friendly_bullets, ours.enemy_bullets) == (
            board(theirs.alien_map),
            board(theirs.f_bullet_map),
            board(theirs.e_bullet_map),
        )
        for name in (*numbers, "terminal", "ramp_index"):
            assert getattr(ours, name) == getattr(theirs, name), name
        cleared += ours.ramp_index
    assert cleared > 10


def test_gauges_of_seaquest(package_game):
    single = package_game("seaquest", sticky_actions=0.0)
    game = single.game.env
    for divers in range(-1, 7):
        for oxygen in (-1, 0, 1, 19, 20, 100, 199, 200):
            game.diver_count, game.oxygen = divers, oxygen
            picture = bytearray(1_000)
            DRAWINGS["seaquest"](game, picture, 0)
            assert bytes(picture) == game.state().transpose(2, 0, 1).astype(np.uint8).tobytes()
