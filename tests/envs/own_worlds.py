"""A user's module, which registers environments with gymnasium on import."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple


class World(gymnasium.Env):
    """Draws every observation from its space; the reward is the first action, the episode ends after ``length`` steps.

    ``draws_from="own"``: observations from a generator that a seed leaves alone; ``"seeded"``: from one that it sets.
    """

    def __init__(
        self, observations: Space, actions: Space, length: int = 5, draws_from: str = "np_random", word: str = ""
    ) -> None:
        if word not in ("", "known"):
            raise KeyError(word)
        self.observation_space, self.action_space, self.length = observations, actions, length
        self.draws_from, self.own = draws_from, np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None and self.draws_from == "seeded":
            self.own = np.random.default_rng(seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._seen(), float(np.ravel(action)[0]), self.steps == self.length, False, {}

    def _seen(self) -> Any:
        generator = self.np_random if self.draws_from == "np_random" else self.own
        self.observation_space.seed(int(generator.integers(2**31)))
        self.last = self.observation_space.sample()
        return self.last


WORLDS: dict[str, tuple[Space, Space]] = {
    "Vector": (Box(-1, 1, (3,), np.float32), Discrete(3, start=5)),
    "Matrix": (Box(-np.inf, 9, (2, 3), np.float64), Box(-0.1, np.array([[0.3], [0.7]]), (2, 1), np.float64)),
    "Switches": (MultiBinary(4), Discrete(2)),
    "Dials": (MultiDiscrete([2, 3]), Discrete(2)),
    "Colour": (Box(0, 255, (84, 84, 3), np.uint8), Discrete(2)),
    "Stacked": (Box(0, 255, (4, 84, 84), np.uint8), Discrete(2)),
    "Gray": (Box(0, 255, (84, 84), np.uint8), Discrete(2)),
    "Small": (Box(0, 1, (10, 10, 4), np.bool_), Discrete(2)),
    "Large": (Box(0, 1, (96, 96, 3), np.float32), Box(-1, 1, (2,), np.float32)),
    "Dict": (Dict(a=Discrete(2)), Discrete(2)),
    "Tuple": (Tuple([Discrete(2), Discrete(3)]), Discrete(2)),
    "Several": (Discrete(2), MultiDiscrete([2, 2])),
    "Whole": (Discrete(2), Box(0, 5, (1,), np.int64)),
    "Unbounded": (Discrete(2), Box(-np.inf, np.inf, (1,), np.float32)),
}
WORLDS["Discrete96"] = (WORLDS["Large"][0], Discrete(2))
make: Any = World
# Imported again by a test that forgot it: gymnasium warns of an id that is registered twice.
for own in [name for name in gymnasium.registry if name.startswith("Own/")]:
    del gymnasium.registry[own]
for name, (observations, actions) in WORLDS.items():
    spaces = {"observations": observations, "actions": actions}
    gymnasium.register(f"Own/{name}-v0", make, max_episode_steps=20, kwargs=spaces)
gymnasium.register("Own/Endless-v0", make, kwargs={"observations": Discrete(2), "actions": Discrete(2)})
gymnasium.register("Own/Random-v0", make, max_episode_steps=20, nondeterministic=True, kwargs=dict(spaces))
