"""Atari games through ALE's saved states, as a model to plan in."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch

from torchrl_reg.planning.atari_emulator import SIZE, EmulatorSettings, Job, LocalEmulator, Outcome, RemoteEmulator
from torchrl_reg.planning.emulator_model import EmulatorModel, Snapshot

Emulator = LocalEmulator | RemoteEmulator


class AtariModel(EmulatorModel):
    """Plans in emulators that are restored to the state wanted, act, and are saved again.

    Observations are those of ``make_env(EnvSettings("atari", ...))``: the maximum of the last two frames, gray, 84 x
    84, the last ``frame_stack`` of them (to within a gray level, where OpenCV rounds otherwise), so that a network
    trained there evaluates leaves here (uint8 ``[M, C, 84, 84]``). Restoring and saving take a sixth of the time of a
    step.

    Args:
        game: ROM name, such as ``"breakout"`` or ``"SpaceInvaders"``.
        frame_skip: emulator frames of an action >= 1.
        frame_stack: images of an observation >= 1.
        sticky_actions: probability in [0, 1) that a frame repeats the action of the frame before. With any, steps are
            stochastic: the draws are not part of a state, and the search is in open loop.
        noop_max: upper bound of the random number of frames without action that an episode begins with.
        minimal_actions: only the actions that do something in the game.
        clip_rewards: whether the search sees only the signs of the rewards, as networks trained that way do.
        observe: whether observations are made; without, an evaluation must not look at them.
        generator: draws what sticks; by default torch's own.
        num_emulators: emulators of the pool >= 1. One plays in this process; several have processes of their own, play
            side by side, and keep the states of the episodes that began there: as many as there are cores, and not more
            than episodes. Their number changes no result.

    Raises:
        ValueError: an unknown game, an argument out of range, or ale_py is not installed.
    """

    def __init__(
        self,
        game: str,
        *,
        frame_skip: int = 4,
        frame_stack: int = 4,
        sticky_actions: float = 0.0,
        noop_max: int = 30,
        minimal_actions: bool = True,
        clip_rewards: bool = True,
        observe: bool = True,
        generator: torch.Generator | None = None,
        num_emulators: int = 1,
    ) -> None:
        for name, value in (
            ("frame_skip", frame_skip),
            ("frame_stack", frame_stack),
            ("num_emulators", num_emulators),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0.0 <= sticky_actions < 1.0:
            raise ValueError(f"sticky_actions must be a probability in [0, 1), got {sticky_actions}.")
        if noop_max < 0:
            raise ValueError(f"noop_max must be at least 0, got {noop_max}.")
        settings = EmulatorSettings(_rom(game), frame_skip, minimal_actions, observe)
        kind: Callable[[EmulatorSettings], Emulator] = LocalEmulator if num_emulators == 1 else RemoteEmulator
        self._pool = [kind(settings) for _ in range(num_emulators)]
        weakref.finalize(self, _close, self._pool)
        self._dropped: list[list[int]] = [[] for _ in self._pool]
        self._saved = 0
        super().__init__(self._pool[0].num_actions, stochastic=sticky_actions > 0)
        self.frame_skip, self.frame_stack, self.noop_max = frame_skip, frame_stack, noop_max
        self.sticky_actions, self.generator = sticky_actions, generator
        self.clip_rewards, self.observe = clip_rewards, observe

    def _begin(self, seeds: Sequence[int]) -> list[Snapshot]:
        starts = [(seed % len(self._pool), None, random.Random(seed).randint(0, self.noop_max)) for seed in seeds]
        snapshots = []
        for saved, (_, _, _, image) in self._work(starts):
            seen = None
            if image is not None:
                black = torch.zeros(self.frame_stack - 1, SIZE, SIZE, dtype=torch.uint8)
                seen = torch.cat((black, torch.from_numpy(image).unsqueeze(0)))
            snapshots.append(Snapshot(saved, seen))
        return snapshots

    def _advance_all(self, snapshots: Sequence[Snapshot], actions: Sequence[int]) -> list[tuple[float, Snapshot, bool]]:
        done = self._work([(*snapshot.saved, action) for snapshot, action in zip(snapshots, actions, strict=True)])
        steps = []
        for before, (saved, (total, over, _, image)) in zip(snapshots, done, strict=True):
            seen = None
            if image is not None:
                assert before.observation is not None
                seen = torch.cat((before.observation[1:], torch.from_numpy(image).unsqueeze(0)))
            reward = float(np.sign(total)) if self.clip_rewards else total
            steps.append((reward, Snapshot(saved, seen, total), over))
        return steps

    def _work(self, wanted: Sequence[tuple[int, int | None, int]]) -> list[tuple[tuple[int, int], Outcome]]:
        """Jobs (which emulator, from which of its states, action) -> where each is saved, and its outcome."""
        jobs: list[list[Job]] = [[] for _ in self._pool]
        saved = []
        for index, origin, action in wanted:
            sticks = [False] * self.frame_skip
            if self.stochastic and origin is not None:
                sticks = (torch.rand(self.frame_skip, generator=self.generator) < self.sticky_actions).tolist()
            self._saved += 1
            saved.append((index, self._saved))
            jobs[index].append((origin, self._saved, action, sticks))
        for emulator, dropped, asked in zip(self._pool, self._dropped, jobs, strict=True):
            if asked:
                emulator.send(dropped, asked)
                dropped.clear()
        answers = [iter(emulator.receive() if asked else ()) for emulator, asked in zip(self._pool, jobs, strict=True)]
        return [(where, next(answers[where[0]])) for where in saved]

    def _forget(self, snapshot: Snapshot) -> None:
        emulator, number = snapshot.saved
        self._dropped[emulator].append(number)


def _close(pool: Sequence[Emulator]) -> None:
    for emulator in pool:
        emulator.close()


def _rom(game: str) -> str:
    try:
        from ale_py import roms
    except ImportError:
        raise ValueError('AtariModel needs ale_py, got none: pip install -e ".[atari]".') from None
    names = {name.replace("_", ""): name for name in roms.get_all_rom_ids()}
    wanted = game.replace("_", "").lower()
    if wanted not in names:
        raise ValueError(f"game must be an Atari game such as breakout, got {game!r}.")
    return str(roms.get_rom_path(names[wanted]))
