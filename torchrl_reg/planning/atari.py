"""Atari games as models of a search."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrl_reg.planning.models import EmulatorModel, Snapshot
from torchrl_reg.planning.tree import check_at_least

SIZE = 84
#: From a saved state's number (None: the start of a game), to the number to save under, by an action (or, at the start,
#: a number of frames without one), and whether each frame repeats the action of the frame before.
Job = tuple[int | None, int, int, Sequence[bool]]
#: Reward, whether the game is over, and the image seen ``[84, 84]``, uint8, or None.
Outcome = tuple[float, bool, np.ndarray | None]


class EmulatorSettings(NamedTuple):
    """Path of a ROM, frames of an action, set of actions, and whether images are made."""

    rom: str
    frame_skip: int
    minimal_actions: bool
    observe: bool


class LocalEmulator:
    """The emulator in this process."""

    def __init__(self, settings: EmulatorSettings) -> None:
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.settings, self._ale = settings, ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(settings.rom)
        ale = self._ale
        self._actions = ale.getMinimalActionSet() if settings.minimal_actions else ale.getLegalActionSet()
        self._saved: dict[int, tuple[Any, int]] = {}
        self._outcomes: list[Outcome] = []

    @property
    def num_actions(self) -> int:
        return len(self._actions)

    def send(self, dropped: Sequence[int], jobs: Sequence[Job]) -> None:
        """Forgets the states ``dropped`` and does ``jobs``, one after the other."""
        for number in dropped:
            del self._saved[number]
        self._outcomes = [self._play(*job) for job in jobs]

    def receive(self) -> list[Outcome]:
        """The outcomes of the jobs sent last."""
        return self._outcomes

    def close(self) -> None:
        """There is nothing to end."""

    def _play(self, origin: int | None, number: int, action: int, sticks: Sequence[bool]) -> Outcome:
        ale, total, screens = self._ale, 0.0, []
        if origin is None:
            before = 0
            ale.reset_game()
            for _ in range(action):
                ale.act(0)
                if ale.game_over():
                    ale.reset_game()
        else:
            saved, before = self._saved[origin]
            ale.restoreState(saved)
            for frame in range(self.settings.frame_skip):
                before = before if sticks[frame] else action
                total += ale.act(self._actions[before])
                if self.settings.observe and frame >= self.settings.frame_skip - 2:
                    screens.append(ale.getScreenGrayscale())
                if ale.game_over():
                    break
        self._saved[number] = (ale.cloneState(), before)
        image = _small(np.maximum.reduce(screens or [ale.getScreenGrayscale()])) if self.settings.observe else None
        return float(total), ale.game_over(), image


class RemoteEmulator:
    """The same in a process of its own, which ends with this object."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self._connection, theirs = Pipe()
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-B", __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **one_thread})
        theirs.close()
        self._write(tuple(settings))
        self.num_actions = int(self._read())

    def send(self, dropped: Sequence[int], jobs: Sequence[Job]) -> None:
        """As :meth:`LocalEmulator.send`, without waiting."""
        self._write((dropped, jobs))

    def receive(self) -> list[Outcome]:
        """As :meth:`LocalEmulator.receive`, once they are done."""
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.wait()

    def _write(self, content: Any) -> None:
        try:
            self._connection.send(content)
        except ConnectionError:
            raise self._ended() from None

    def _read(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"The process of an emulator ended with exit code {self._process.wait()}.")


def serve(connection: Connection) -> None:
    """Does the jobs that come in by ``connection`` until it is closed."""
    emulator = LocalEmulator(EmulatorSettings(*connection.recv()))
    connection.send(emulator.num_actions)
    while True:
        emulator.send(*connection.recv())
        connection.send(emulator.receive())


def _small(screen: np.ndarray) -> np.ndarray:
    """A gray screen ``[210, 160]`` averaged over areas to ``[84, 84]``, uint8."""
    height, width = screen.shape
    sums = _areas(height) @ screen.astype(np.float32) @ _areas(width).T
    return np.rint(sums / (height * width)).astype(np.uint8)


@cache
def _areas(size: int) -> np.ndarray:
    """Overlap of each of 84 equal stretches with each of ``size`` pixels, ``[84, size]``, in 84ths of a pixel.

    These are integers, and so every sum of :func:`_small` is exact in float32, whichever order a BLAS takes.
    """
    edges = np.arange(SIZE + 1) * size
    pixels = np.arange(size) * SIZE
    overlap = np.minimum(edges[1:, None], pixels + SIZE) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0).astype(np.float32)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):  # as the connection is closed
        serve(Connection(int(sys.argv[1])))


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
        check_at_least(1, frame_skip=frame_skip, frame_stack=frame_stack, num_emulators=num_emulators)
        check_at_least(0, noop_max=noop_max)
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
