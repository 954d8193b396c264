"""Atari through ALE's native vector environment (Bellemare et al., 2013; Machado et al., 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper

from torchrl_reg.envs.settings import check_name, needing

# Entries of the record other than actions: the game was reset, or was not touched while another one was.
_RESET, _SKIPPED = -1, -2


class CallerResetAtari(VectorWrapper):
    """ALE's vector environment with resets left to the caller (gymnasium's ``DISABLED`` mode).

    ALE restarts a game within the step that ends it; its other modes are not usable here. This class returns the final
    frames at such a step and holds back the first frames of the next episode until
    ``reset(options={"reset_mask": ...})``. TorchRL then needs neither info readers nor a transform to undo the restart,
    and any mask can be reset at any time.

    ALE's vector environment exposes no system state, but a seeded reset discards all history, so a game is restored by
    replaying its actions since the last seed. To bound the replay, a game is reseeded when an episode ends more than
    ``RESEED_STEPS`` steps after the last seed; the new seed is drawn from the game's first one. Seeding costs as much
    as about a hundred steps.
    """

    RESEED_STEPS = 20_000

    def __init__(self, ale: Any) -> None:
        super().__init__(ale)  # an ale_py AtariVectorEnv in SAME_STEP mode
        self.ale = ale
        self.autoreset_mode = AutoresetMode.DISABLED
        self.metadata = {**ale.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self._frames: np.ndarray = np.zeros(0, np.uint8)  # until the first reset
        self._restarted = np.zeros(self.num_envs, np.bool_)
        # Rows [N] of actions, or of _RESET and _SKIPPED. Per game: its first seed, how often it was reseeded, and the
        # row of the record at which it was last seeded.
        self._record: list[np.ndarray] = []
        self._first_seed = np.zeros(self.num_envs, np.int64)
        self._seedings = np.zeros(self.num_envs, np.int64)
        self._first_row = np.zeros(self.num_envs, np.int64)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Resets the masked games (default: all). With ``seed``, an int or one int per game, resets and seeds all."""
        mask = (options or {}).get("reset_mask")
        if seed is None and not self._frames.size:
            seed = int(np.random.default_rng().integers(2**31 - self.num_envs))
        if seed is not None:
            self._first_seed = np.arange(seed, seed + self.num_envs) if isinstance(seed, int) else np.array(seed)
            self._seedings = np.zeros(self.num_envs, np.int64)
            self._record.clear()
            self._first_row[:] = 0
            self._frames, _ = self.ale.reset(seed=self._first_seed)
            self._restarted = np.zeros(self.num_envs, np.bool_)
            return self._frames.copy(), {}
        selected = np.ones(self.num_envs, np.bool_) if mask is None else mask
        running = selected if mask is None else mask & ~self._restarted
        if running.any():
            self._record.append(np.where(running, _RESET, _SKIPPED))
            self._frames, _ = self.ale.reset(options={"reset_mask": running})
        old = selected & ~running & (len(self._record) - self._first_row >= self.RESEED_STEPS)
        if old.any():
            self._reseed(old)
        self._restarted = self._restarted & ~selected
        # A copy: writes of the caller must not reach the frames kept here.
        return self._frames.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._restarted.any():
            finished = self._restarted.nonzero()[0].tolist()
            raise ValueError(f"games {finished} must be reset before the next step, got an action for them.")
        self._record.append(np.array(actions, np.int64))
        frames, reward, terminated, truncated, info = self.ale.step(actions)
        done = terminated | truncated
        self._frames, self._restarted = frames, done
        if done.any():
            # final_obs is only defined for the finished games.
            frames = np.where(done[:, None, None, None], info["final_obs"], frames)
        return frames, reward, terminated, truncated, {}

    def snapshot(self) -> dict[str, Any]:
        """The seeds, the record since the oldest of them, and the current frames, which :meth:`restore` compares."""
        oldest = int(self._first_row.min())
        record = self._record[oldest:]
        return {
            "first_seed": self._first_seed.copy(),
            "seedings": self._seedings.copy(),
            "first_row": self._first_row - oldest,
            "record": np.stack(record) if record else None,
            "frames": self._frames.copy(),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Replays every game from its last seed; False if the resulting frames differ."""
        self._record = [] if snapshot["record"] is None else list(snapshot["record"])
        self._first_seed, self._seedings = snapshot["first_seed"].copy(), snapshot["seedings"].copy()
        self._first_row = snapshot["first_row"].copy()
        seeds = self._seeds()
        for number, row in enumerate([*self._record, None]):
            seeded = self._first_row == number
            if seeded.any():
                self._frames, _ = self.ale.reset(seed=seeds[seeded], options={"reset_mask": seeded})
            if row is None:
                break
            # Games with a later seed are stepped as well: seeding discards these steps.
            if (row >= 0).all():
                self._frames, *_ = self.ale.step(row)
            else:
                self._frames, _ = self.ale.reset(options={"reset_mask": row == _RESET})
        self._restarted = np.zeros(self.num_envs, np.bool_)
        return bool(np.array_equal(self._frames, snapshot["frames"]))

    def _seeds(self) -> np.ndarray:
        """The current seed of each game: its first one, or one drawn from it and the number of reseedings."""
        pairs = zip(self._first_seed.tolist(), self._seedings.tolist(), strict=True)
        drawn = [int(np.random.SeedSequence(pair).generate_state(1)[0]) >> 1 for pair in pairs]  # 31 bits
        return np.where(self._seedings == 0, self._first_seed, drawn)

    def _reseed(self, games: np.ndarray) -> None:
        self._seedings = self._seedings + games
        self._first_row[games] = len(self._record)
        oldest = int(self._first_row.min())
        del self._record[:oldest]
        self._first_row -= oldest
        self._frames, _ = self.ale.reset(seed=self._seeds()[games], options={"reset_mask": games})


def atari_vector_env(
    num_envs: int,
    *,
    game: str,
    max_episode_frames: int = 108_000,
    sticky_actions: float = 0.25,
    frame_skip: int = 4,
    frame_stack: int = 4,
    noop_max: int = 0,
    minimal_actions: bool = True,
) -> CallerResetAtari:
    """``num_envs`` Atari games: 84x84 gray frames, game over terminates, raw rewards.

    Follows Machado et al. (2018) and Dopamine: no reward clipping, no termination at a life loss,
    no FIRE at the start. ``max_episode_frames`` counts emulator frames and truncates.

    Raises:
        ValueError: unknown game, or ale_py is not installed.
    """
    with needing("ale_py", "atari", extra="atari"):
        from ale_py.vector_env import AtariVectorEnv
    ale = AtariVectorEnv(
        _rom_id(game),
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


def atari_action_names(game: str, *, minimal_actions: bool = True) -> tuple[str, ...]:
    """Names of the actions of a game: ``("noop", "fire", "right", ...)``."""
    import ale_py
    from ale_py.roms import get_rom_path

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(get_rom_path(_rom_id(game))))
    actions = ale.getMinimalActionSet() if minimal_actions else ale.getLegalActionSet()
    return tuple(action.name.lower() for action in actions)


def _rom_id(game: str) -> str:
    from ale_py.roms import get_all_rom_ids

    roms = {name.replace("_", ""): name for name in get_all_rom_ids()}
    plain = game.replace("_", "").lower()  # "mspacman" of MsPacman and ms_pacman
    if plain not in roms:
        check_name("game", game, roms.values())
    return roms[plain]
