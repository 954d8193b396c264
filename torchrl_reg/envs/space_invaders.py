"""MinAtar's Space Invaders (Young and Tian, 2019, package 1.0.15) with boards as integers.

A board of 10 x 10 cells is one integer, a byte a cell, row 0 in its lowest bytes: moving everything a row is a shift by
80 bits, a column by 8, and the bytes are the picture.
"""

from __future__ import annotations

import numpy as np

_ROW, _CELL = 80, 8
_FULL = (1 << 10 * _ROW) - 1
_COLUMNS = [sum(1 << _ROW * y + _CELL * x for y in range(10)) for x in range(10)]
_WAVE = sum(1 << _ROW * y + _CELL * x for y in range(4) for x in range(2, 8))
# Columns by distance from the cannon, the left of two first.
_NEAREST = [sorted(range(10), key=lambda x, cannon=cannon: abs(x - cannon)) for cannon in range(10)]  # type: ignore[misc]
_SHOT_COOL_DOWN, _MOVE_INTERVAL, _SHOT_INTERVAL = 5, 12, 10


class SpaceInvaders:
    """One game, equal step by step to ``minatar.environments.space_invaders.Env``, and with the attributes that MinAtar
    expects.

    Args:
        ramping: each wave of aliens is faster than the one before, down to 6 steps a move.
    """

    def __init__(self, ramping: bool = True) -> None:
        self.ramping = ramping
        self.random = np.random.RandomState()  # MinAtar seeds it; the game draws nothing
        self.reset()

    def reset(self) -> None:
        self.pos = 5
        self.friendly_bullets = 0
        self.enemy_bullets = 0
        self.aliens = _WAVE
        self.alien_dir = -1
        self.enemy_move_interval = _MOVE_INTERVAL
        self.alien_move_timer = _MOVE_INTERVAL
        self.alien_shot_timer = _SHOT_INTERVAL
        self.ramp_index = 0
        self.shot_timer = 0
        self.terminal = False

    def act(self, action: int) -> tuple[int, bool]:
        """Plays ``action`` (1 left, 3 right, 5 fire); the reward, aliens shot, and whether the cannon is lost."""
        if self.terminal:
            return 0, True
        if action == 5 and self.shot_timer == 0:
            self.friendly_bullets |= 1 << 9 * _ROW + _CELL * self.pos
            self.shot_timer = _SHOT_COOL_DOWN
        elif action == 1:
            self.pos = max(0, self.pos - 1)
        elif action == 3:
            self.pos = min(9, self.pos + 1)
        cannon = 1 << 9 * _ROW + _CELL * self.pos
        self.friendly_bullets >>= _ROW
        self.enemy_bullets = self.enemy_bullets << _ROW & _FULL
        if (self.enemy_bullets | self.aliens) & cannon:
            self.terminal = True
        if self.alien_move_timer == 0:
            self._move_aliens(cannon)
        if self.alien_shot_timer == 0:
            self.alien_shot_timer = _SHOT_INTERVAL
            self._shoot()
        shot = self.aliens & self.friendly_bullets
        self.aliens ^= shot
        self.friendly_bullets ^= shot
        self.shot_timer -= self.shot_timer > 0
        self.alien_move_timer -= 1
        self.alien_shot_timer -= 1
        if not self.aliens:
            if self.enemy_move_interval > 6 and self.ramping:
                self.enemy_move_interval -= 1
                self.ramp_index += 1
            self.aliens = _WAVE
        return shot.bit_count(), self.terminal

    def minimal_action_set(self) -> list[int]:
        return [0, 1, 3, 5]

    def _move_aliens(self, cannon: int) -> None:
        self.alien_move_timer = min(self.aliens.bit_count(), self.enemy_move_interval)
        ahead = _COLUMNS[0] if self.alien_dir < 0 else _COLUMNS[9]
        if self.aliens & ahead:
            self.alien_dir = -self.alien_dir
            bottom = self.aliens >> 9 * _ROW
            if bottom:
                self.terminal = True
            self.aliens = self.aliens << _ROW & _FULL | bottom
        elif self.alien_dir < 0:
            self.aliens >>= _CELL
        else:
            self.aliens <<= _CELL
        if self.aliens & cannon:
            self.terminal = True

    def _shoot(self) -> None:
        """The lowest alien of the column nearest to the cannon fires."""
        for x in _NEAREST[self.pos]:
            column = self.aliens & _COLUMNS[x]
            if column:
                self.enemy_bullets |= 1 << column.bit_length() - 1
                return
