"""MinAtar's batched games against those of the package, one by one."""

from __future__ import annotations

from functools import partial
from itertools import count

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.minatar import GAMES, MinAtar, SpaceInvaders, _minatar_environment
from torchrl_reg.envs.minatar_drawing import DRAWINGS


class PackageGame(gymnasium.Env):
    """One game of the MinAtar package."""

    def __init__(self, game: str, *, sticky_actions: float = 0.0, minimal: bool = True, ramping: bool = True) -> None:
        self.game = _minatar_environment()(game, sticky_action_prob=sticky_actions, difficulty_ramping=ramping)
        self.actions = self.game.minimal_action_set() if minimal else list(range(6))
        height, width, channels = self.game.state_shape()
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        self.observation_space = gymnasium.spaces.Box(0, 1, (channels, height, width), np.uint8)

    def picture(self):
        return self.game.state().transpose(2, 0, 1).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.game.seed(seed)
            self.game.last_action = 0
        self.game.reset()
        return self.picture(), {}

    def step(self, action):
        reward, terminated = self.game.act(self.actions[action])
        return self.picture(), float(reward), bool(terminated), False, {}


@pytest.fixture
def play(side_by_side):
    """Plays the same actions in both; copies that shoot or dodge get further. Returns the sums of what was seen."""

    def beside_the_package(game, steps, num_envs, minimal):
        options = {"sticky_actions": 0.2, "max_episode_frames": 400}
        ours = MinAtar(num_envs, game=game, minimal_actions=minimal, difficulty_ramping=minimal, **options)
        build = partial(PackageGame, game, sticky_actions=0.2, minimal=minimal, ramping=minimal)
        limited = [lambda: TimeLimit(build(), max_episode_steps=400)] * num_envs
        theirs = SyncVectorEnv(limited, autoreset_mode=AutoresetMode.DISABLED)
        assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
        rng, numbers, actions = np.random.default_rng(5), count(), ours.single_action_space.n

        def act(_):
            random = rng.integers(actions, size=num_envs)
            if next(numbers) % 800 >= 400:
                return random
            # Each copy has a favourite: some shoot, some cross the road.
            return np.where(rng.uniform(size=num_envs) < 0.7, np.arange(num_envs) % actions, random)

        return side_by_side(ours, theirs, act, steps, seed=7)

    return beside_the_package


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("minimal", [True, False])
def test_every_step_is_that_of_the_package(game, minimal, play):
    reward, terminated, truncated = play(game, 1_000, 3, minimal)
    assert reward > 0 and (truncated if game == "freeway" else terminated) > 0


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_a_hundred_thousand_steps_are_those_of_the_package(game, play):
    assert play(game, 20_000, 5, minimal=True)[0] > 100


def test_a_seed_forgets_the_action_before():
    game = MinAtar(1, game="breakout", sticky_actions=1.0)
    game.reset(seed=0)
    game._games[0].last_action = 1  # as an episode before may leave it
    paddle = game.reset(seed=0)[0][0, 0, 9]
    assert np.array_equal(paddle, game.step(np.array([1]))[0][0, 0, 9])  # repeats no action, and not that one


def board(cells):
    """The integer of a board ``[10, 10]``, as SpaceInvaders holds it."""
    return int.from_bytes(cells.astype(np.uint8).tobytes(), "little")


def test_space_invaders_is_the_package_s_from_any_state():
    """Few aliens, aliens at the edges and at the bottom, timers at zero: states that play seldom reaches."""
    theirs = PackageGame("space_invaders").game.env
    rng = np.random.default_rng(0)
    cleared = 0
    boards = {"aliens": "alien_map", "friendly_bullets": "f_bullet_map", "enemy_bullets": "e_bullet_map"}
    for trial in range(2_000):
        ours = SpaceInvaders(ramping=bool(trial % 2))
        theirs.reset()
        theirs.ramping = ours.ramping
        maps = [(rng.uniform(size=(10, 10)) < p).astype(float) for p in (rng.choice([0.02, 0.1, 0.5]), 0.3, 0.1)]
        maps[0][rng.integers(10), rng.integers(10)] = 1
        for (name, their_name), cells in zip(boards.items(), maps, strict=True):
            setattr(ours, name, board(cells))
            setattr(theirs, their_name, cells)
        numbers = {
            "pos": rng.integers(10),
            "alien_dir": rng.choice([-1, 1]),
            "enemy_move_interval": rng.integers(6, 13),
        }
        numbers |= {name: rng.integers(2) for name in ("alien_move_timer", "alien_shot_timer", "shot_timer")}
        for name, value in numbers.items():
            setattr(ours, name, int(value))
            setattr(theirs, name, int(value))
        action = int(rng.integers(6))
        assert ours.act(action) == theirs.act(action)
        for name, their_name in boards.items():
            assert getattr(ours, name) == board(getattr(theirs, their_name)), name
        for name in (*numbers, "terminal", "ramp_index"):
            assert getattr(ours, name) == getattr(theirs, name), name
        cleared += ours.ramp_index
    assert cleared > 10


def test_gauges_of_seaquest():
    single = PackageGame("seaquest")
    game = single.game.env
    for divers in range(-1, 7):
        for oxygen in (-1, 0, 1, 19, 20, 100, 199, 200):
            game.diver_count, game.oxygen = divers, oxygen
            picture = bytearray(1_000)
            DRAWINGS["seaquest"](game, picture, 0)
            assert bytes(picture) == single.picture().tobytes()
