"""Atari games through ALE's saved states, as a model to plan in."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_reg.planning.emulator_model import EmulatorModel, Snapshot

_SCREEN, _SIZE = (210, 160), 84


class AtariModel(EmulatorModel):
    """Plans in an emulator that is restored to the state wanted, acts, and is saved again.

    Observations are those of ``make_env(EnvSettings("atari", ...))``: the maximum of the last two frames, gray,
    84 x 84, the last ``frame_stack`` of them (to within a gray level, where OpenCV rounds otherwise), so that a network
    trained there evaluates leaves here (uint8 ``[M, C, 84, 84]``). One emulator serves all states in turn: to restore
    and to save it takes a sixth of the time of a step.

    Args:
        game: ROM name, such as ``"breakout"`` or ``"SpaceInvaders"``.
        frame_skip: emulator frames of an action >= 1.
        frame_stack: images of an observation >= 1.
        sticky_actions: probability in [0, 1) that a frame repeats the action of the frame before. With any, steps are
            stochastic: the dice are no part of a state, and the search is in open loop.
        noop_max: upper bound of the random number of frames without action that an episode begins with.
        minimal_actions: only the actions that do something in the game.
        clip_rewards: whether the search sees the sign of the rewards, as networks do that were trained so.
        observe: whether observations are made; without, an evaluation must not look at them.
        generator: draws what sticks; by default torch's own.

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
    ) -> None:
        for name, value in (("frame_skip", frame_skip), ("frame_stack", frame_stack)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0.0 <= sticky_actions < 1.0:
            raise ValueError(f"sticky_actions must be a probability in [0, 1), got {sticky_actions}.")
        if noop_max < 0:
            raise ValueError(f"noop_max must be at least 0, got {noop_max}.")
        self._ale = _emulator(game)
        self._actions = self._ale.getMinimalActionSet() if minimal_actions else self._ale.getLegalActionSet()
        super().__init__(len(self._actions), stochastic=sticky_actions > 0)
        self.frame_skip, self.frame_stack, self.noop_max = frame_skip, frame_stack, noop_max
        self.sticky_actions, self.generator = sticky_actions, generator
        self.clip_rewards, self.observe = clip_rewards, observe

    def _start(self, seed: int) -> Snapshot:
        self._ale.reset_game()
        for _ in range(random.Random(seed).randint(0, self.noop_max)):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        seen = None
        if self.observe:
            image = _small(self._ale.getScreenGrayscale())
            seen = torch.cat((image.new_zeros(self.frame_stack - 1, _SIZE, _SIZE), image))
        return Snapshot((self._ale.cloneState(), 0), seen)

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        ale, (saved, before) = self._ale, snapshot.saved
        ale.restoreState(saved)
        total, screens = 0.0, []
        sticks = [False] * self.frame_skip
        if self.stochastic:
            sticks = (torch.rand(self.frame_skip, generator=self.generator) < self.sticky_actions).tolist()
        for frame in range(self.frame_skip):
            before = before if sticks[frame] else action
            total += ale.act(self._actions[before])
            if self.observe and frame >= self.frame_skip - 2:
                screens.append(ale.getScreenGrayscale())
            if ale.game_over():
                break
        seen = None
        if self.observe:
            assert snapshot.observation is not None
            image = _small(np.maximum.reduce(screens or [ale.getScreenGrayscale()]))
            seen = torch.cat((snapshot.observation[1:], image))
        reward = float(np.sign(total)) if self.clip_rewards else float(total)
        return reward, Snapshot((ale.cloneState(), before), seen, float(total)), ale.game_over()


def _emulator(game: str) -> Any:
    try:
        import ale_py
        from ale_py import roms
    except ImportError:
        raise ValueError('ale_py is not installed: pip install -e ".[atari]".') from None
    names = {name.replace("_", ""): name for name in roms.get_all_rom_ids()}
    wanted = game.replace("_", "").lower()
    if wanted not in names:
        raise ValueError(f"game must be an Atari game such as breakout, got {game!r}.")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    ale.loadROM(str(roms.get_rom_path(names[wanted])))
    return ale


def _small(screen: np.ndarray) -> Tensor:
    """A gray screen ``[210, 160]`` averaged over areas to ``[1, 84, 84]``, uint8."""
    rows, columns = _averaging(screen.shape[0]), _averaging(screen.shape[1])
    small = rows @ torch.from_numpy(screen.astype(np.float32)) @ columns.T
    return small.round_().clamp_(0, 255).to(torch.uint8).unsqueeze(0)


@cache
def _averaging(size: int) -> Tensor:
    """Weights ``[84, size]`` with which each of 84 equal stretches averages ``size`` pixels."""
    edges = torch.linspace(0, size, _SIZE + 1, dtype=torch.float64)
    pixels = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * _SIZE / size).float()
