"""Atari games through ALE's saved states, as a model to plan in."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

from torchrl_reg.planning.atari_emulator import SIZE, EmulatorSettings, Job, LocalEmulator, Outcome, RemoteEmulator
from torchrl_reg.planning.models import EmulatorModel, Snapshot
from torchrl_reg.planning.tree import check_minimum

Emulator = LocalEmulator | RemoteEmulator
#: Which emulator, and the number of a state that it saved, or None for the start of a game.
_Saved = tuple[int, int | None]


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
        num_emulators: emulators of the pool >= 1. One plays in this process; several have separate processes, play
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
        check_minimum(1, frame_skip=frame_skip, frame_stack=frame_stack, num_emulators=num_emulators)
        check_minimum(0, noop_max=noop_max)
        if not 0.0 <= sticky_actions < 1.0:
            raise ValueError(f"sticky_actions must be a probability in [0, 1), got {sticky_actions}.")
        settings = EmulatorSettings(_rom(game), frame_skip, minimal_actions, observe)
        kind: Callable[[EmulatorSettings], Emulator] = LocalEmulator if num_emulators == 1 else RemoteEmulator
        self._pool = [kind(settings) for _ in range(num_emulators)]
        for emulator in self._pool:
            weakref.finalize(self, emulator.close)
        self._dropped: list[list[int]] = [[] for _ in self._pool]
        self._numbers = count()
        super().__init__(self._pool[0].num_actions, stochastic=sticky_actions > 0)
        self.frame_skip, self.frame_stack, self.noop_max = frame_skip, frame_stack, noop_max
        self.sticky_actions, self.generator = sticky_actions, generator
        self.clip_rewards, self.observe = clip_rewards, observe

    def _begin(self, seeds: Sequence[int]) -> list[Snapshot]:
        wanted = [((seed % len(self._pool), None), random.Random(seed).randint(0, self.noop_max)) for seed in seeds]
        return [Snapshot(saved, self._stacked(None, image)) for saved, (_, _, image) in self._work(wanted)]

    def _advance_all(self, snapshots: Sequence[Snapshot], actions: Sequence[int]) -> list[tuple[float, Snapshot, bool]]:
        done = self._work([(before.saved, action) for before, action in zip(snapshots, actions, strict=True)])
        steps = []
        for before, (saved, (total, over, image)) in zip(snapshots, done, strict=True):
            after = Snapshot(saved, self._stacked(before.observation, image), total)
            steps.append((float(np.sign(total)) if self.clip_rewards else total, after, over))
        return steps

    def _stacked(self, before: Tensor | None, image: np.ndarray | None) -> Tensor | None:
        """The observation ``[C, 84, 84]`` with ``image`` as its last, after that ``before``; black at first."""
        if image is None:
            return None
        if before is None:
            before = torch.zeros(self.frame_stack, SIZE, SIZE, dtype=torch.uint8)
        return torch.cat((before[1:], torch.from_numpy(image).unsqueeze(0)))

    def _work(self, wanted: Sequence[tuple[_Saved, int]]) -> list[tuple[_Saved, Outcome]]:
        """Where each of the states that follow ``wanted``, states and actions, is saved, and its outcome."""
        jobs: list[list[Job]] = [[] for _ in self._pool]
        places: list[_Saved] = []
        for (index, origin), action in wanted:
            sticks = [False] * self.frame_skip
            if self.stochastic and origin is not None:
                sticks = (torch.rand(self.frame_skip, generator=self.generator) < self.sticky_actions).tolist()
            number = next(self._numbers)
            places.append((index, number))
            jobs[index].append((origin, number, action, sticks))
        for emulator, dropped, asked in zip(self._pool, self._dropped, jobs, strict=True):
            if asked:
                emulator.send(dropped, asked)
                dropped.clear()
        answers = [iter(emulator.receive() if asked else ()) for emulator, asked in zip(self._pool, jobs, strict=True)]
        return [(place, next(answers[place[0]])) for place in places]

    def _forget(self, snapshot: Snapshot) -> None:
        emulator, number = snapshot.saved
        self._dropped[emulator].append(number)


def _rom(game: str) -> str:
    try:
        from ale_py import roms
    except ImportError:
        raise ValueError('AtariModel needs ale_py, got none: pip install "torchrl_reg[atari]".') from None
    names = {name.replace("_", ""): name for name in roms.get_all_rom_ids()}
    wanted = game.replace("_", "").lower()
    if wanted not in names:
        raise ValueError(f"game must be an Atari game such as breakout, got {game!r}.")
    return str(roms.get_rom_path(names[wanted]))
