"""One ALE emulator and the states it saved, in this process or, run as a script, at the other end of a connection.

Imports no torch, so that a separate process starts in a fraction of a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

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
    """The same in a separate process, which ends with this object."""

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
