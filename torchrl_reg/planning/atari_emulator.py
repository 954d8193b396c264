"""One ALE emulator and the states it saved, in this process or, run as a script, at the other end of a pipe.

Imports no torch, so that a process of its own starts in a fraction of a second.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 84
#: From a saved state's number (None: the start of a game), to the number to save under, by an action (or, at the start,
#: a number of frames without one), with what sticks in each frame.
Job = tuple[int | None, int, int, Sequence[bool]]
#: Reward, whether the game is over, the action of the last frame, and the image seen ``[84, 84]``, uint8, or None.
Outcome = tuple[float, bool, int, np.ndarray | None]


@dataclass(frozen=True)
class EmulatorSettings:
    """What an emulator plays: path of a ROM, frames of an action, set of actions, and whether images are made."""

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
        self._outcomes = [self._begin(*job) if job[0] is None else self._advance(*job) for job in jobs]

    def receive(self) -> list[Outcome]:
        """The outcomes of the jobs sent last."""
        return self._outcomes

    def close(self) -> None:
        """There is nothing to end."""

    def ram(self, number: int) -> list[int]:
        """The memory of the machine in a saved state."""
        self._ale.restoreState(self._saved[number][0])
        return self._ale.getRAM().tolist()

    def _begin(self, _: int | None, number: int, frames: int, __: Sequence[bool]) -> Outcome:
        self._ale.reset_game()
        for _frame in range(frames):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        self._saved[number] = (self._ale.cloneState(), 0)
        return 0.0, False, 0, _small(self._ale.getScreenGrayscale()) if self.settings.observe else None

    def _advance(self, origin: int | None, number: int, action: int, sticks: Sequence[bool]) -> Outcome:
        ale = self._ale
        assert origin is not None
        saved, before = self._saved[origin]
        ale.restoreState(saved)
        total, screens, observe = 0.0, [], self.settings.observe
        for frame in range(self.settings.frame_skip):
            before = before if sticks[frame] else action
            total += ale.act(self._actions[before])
            if observe and frame >= self.settings.frame_skip - 2:
                screens.append(ale.getScreenGrayscale())
            if ale.game_over():
                break
        self._saved[number] = (ale.cloneState(), before)
        image = _small(np.maximum.reduce(screens or [ale.getScreenGrayscale()])) if observe else None
        return float(total), ale.game_over(), before, image


class RemoteEmulator:
    """The same in a process of its own, which ends with this object."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._write(asdict(settings))
        self.num_actions = int(self._read())

    def send(self, dropped: Sequence[int], jobs: Sequence[Job]) -> None:
        """As :meth:`LocalEmulator.send`, without waiting."""
        self._write((dropped, jobs))

    def receive(self) -> list[Outcome]:
        """As :meth:`LocalEmulator.receive`, once they are done."""
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.read()  # an answer nobody fetched; a closed pipe would end the process with a traceback
        self._process.stdout.close()
        self._process.wait()

    def _write(self, content: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(content, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _read(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except EOFError:
            raise self._ended() from None

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"The process of an emulator ended with exit code {self._process.wait()}.")


def serve() -> None:
    """Does the jobs that come in by standard input until it is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints
    questions = sys.stdin.buffer
    emulator = LocalEmulator(EmulatorSettings(**pickle.load(questions)))
    answer: Any = emulator.num_actions
    while True:
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
        try:
            emulator.send(*pickle.load(questions))
        except EOFError:
            return
        answer = emulator.receive()


def _small(screen: np.ndarray) -> np.ndarray:
    """A gray screen ``[210, 160]`` averaged over areas to ``[84, 84]``, uint8."""
    height, width = screen.shape
    sums = _areas(height) @ screen.astype(np.float32) @ _areas(width).T
    return np.rint(sums / (height * width)).astype(np.uint8)


@cache
def _areas(size: int) -> np.ndarray:
    """How much of each of ``size`` pixels each of 84 equal stretches covers, ``[84, size]``, in 84ths of a pixel.

    These are integers, and so every sum of :func:`_small` is exact in float32, whichever order a BLAS takes.
    """
    edges = np.arange(SIZE + 1) * size
    pixels = np.arange(size) * SIZE
    overlap = np.minimum(edges[1:, None], pixels + SIZE) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0).astype(np.float32)


if __name__ == "__main__":
    serve()
