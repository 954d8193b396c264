"""Atari through ALE's native vector environment (Bellemare et al., 2013; Machado et al., 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from torchrl_reg.envs.settings import EnvError, unknown_name


class CallerResetAtari(VectorEnv):
    """ALE's vector environment with resets left to the caller (gymnasium's ``DISABLED`` mode).

    ALE restarts a game within the step that ends it and offers no other usable mode. This class
    returns the final frames at such a step and keeps the first frames of the next episode until
    ``reset(options={"reset_mask": ...})`` asks for them, so TorchRL needs neither info readers nor
    a transform to undo the restart, and any mask may be reset at any time.
    """

    def __init__(self, ale: Any) -> None:
        self.ale = ale  # an ale_py AtariVectorEnv in SAME_STEP mode
        self.num_envs = ale.num_envs
        self.autoreset_mode = AutoresetMode.DISABLED
        self.metadata = {**ale.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = ale.single_observation_space
        self.single_action_space = ale.single_action_space
        self.observation_space = ale.observation_space
        self.action_space = ale.action_space
        self._frames: np.ndarray = np.zeros(0, np.uint8)  # until the first reset
        self._restarted = np.zeros(self.num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Resets the masked (default: all) games; ``seed`` has one entry per game and resets all."""
        mask = (options or {}).get("reset_mask")
        if seed is not None or mask is None:
            seeds = np.asarray(seed) if isinstance(seed, list) else seed
            self._frames, _ = self.ale.reset(seed=seeds)
            self._restarted = np.zeros(self.num_envs, np.bool_)
            return self._frames, {}
        running = mask & ~self._restarted
        if running.any():
            self._frames, _ = self.ale.reset(options={"reset_mask": running})
        self._restarted = self._restarted & ~mask
        # A copy: the caller may write into what it got.
        return self._frames.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._restarted.any():
            raise EnvError(
                f"step: expected finished games {self._restarted.nonzero()[0].tolist()} to be reset "
                "first, got an action for them."
            )
        frames, reward, terminated, truncated, info = self.ale.step(actions)
        done = terminated | truncated
        self._frames, self._restarted = frames, done
        if done.any():
            # final_obs is meaningful in the finished rows only.
            frames = np.where(done[:, None, None, None], info["final_obs"], frames)
        return frames, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        self.ale.close()


def atari_vector_env(
    num_envs: int,
    *,
    game: str,
    max_episode_frames: int,
    sticky_actions: float,
    frame_skip: int,
    frame_stack: int,
    noop_max: int,
    minimal_actions: bool,
) -> CallerResetAtari:
    """``num_envs`` Atari games: 84x84 gray frames, game over terminates, raw rewards.

    Follows Machado et al. (2018) and Dopamine: no reward clipping, no termination at a life loss,
    no FIRE at the start. ``max_episode_frames`` counts emulator frames and truncates.

    Raises:
        EnvError: unknown game, or ale_py is not installed.
    """
    try:
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvError('ale_py is not installed: pip install -e ".[atari]".') from error
    ale = AtariVectorEnv(
        _rom_name(game),
        num_envs,
        frameskip=frame_skip,
        stack_num=frame_stack,
        repeat_action_probability=sticky_actions,
        full_action_space=not minimal_actions,
        noop_max=noop_max,
        max_num_frames_per_episode=max_episode_frames,
        reward_clipping=False,
        use_fire_reset=False,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    return CallerResetAtari(ale)


def _rom_name(game: str) -> str:
    """``ms_pacman`` from ``MsPacman``, ``ms_pacman`` or ``mspacman``."""
    from ale_py.roms import get_all_rom_ids

    names = {name.replace("_", ""): name for name in get_all_rom_ids()}
    try:
        return names[game.replace("_", "").lower()]
    except KeyError:
        raise EnvError(unknown_name("game", game, names.values())) from None
