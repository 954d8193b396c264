"""Observations of MinAtar's games written byte by byte, 8 times as fast as the package's numpy boards.

``draw(game, picture, start)`` sets bytes of the zeroed ``picture`` to one: channel ``c``, row ``y``, column ``x`` is
byte ``start + 100 c + 10 y + x``. Channels are in the package's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_ONES = b"\1" * 10


def _asterix(game: Any, picture: bytearray, start: int) -> None:
    picture[start + 10 * game.player_y + game.player_x] = 1
    for entity in game.entities:
        if entity is not None:
            x, y, rightwards, is_gold = entity
            picture[start + (300 if is_gold else 100) + 10 * y + x] = 1
            _trail(picture, start + 200 + 10 * y, x, rightwards)


def _breakout(game: Any, picture: bytearray, start: int) -> None:
    picture[start + 90 + game.pos] = 1
    picture[start + 100 + 10 * game.ball_y + game.ball_x] = 1
    picture[start + 200 + 10 * game.last_y + game.last_x] = 1
    picture[start + 300 : start + 400] = game.brick_map.astype(np.uint8).tobytes()


def _freeway(game: Any, picture: bytearray, start: int) -> None:
    picture[start + 10 * game.pos + 4] = 1
    for x, y, _, speed in game.cars:
        row = start + 10 * y
        picture[row + 100 + x] = 1
        back = x - 1 if speed > 0 else x + 1
        picture[row + 100 + 100 * abs(speed) + back % 10] = 1


def _seaquest(game: Any, picture: bytearray, start: int) -> None:
    row = start + 10 * game.sub_y
    picture[row + game.sub_x] = 1
    picture[row + 100 + (game.sub_x - 1 if game.sub_or else game.sub_x + 1)] = 1
    for x, y, _ in game.f_bullets:
        picture[start + 200 + 10 * y + x] = 1
    for x, y, _ in game.e_bullets:
        picture[start + 400 + 10 * y + x] = 1
    for channel, things in ((500, game.e_fish), (600, game.e_subs), (900, game.divers)):
        for thing in things:
            x, y, rightwards = thing[:3]
            picture[start + channel + 10 * y + x] = 1
            _trail(picture, start + 300 + 10 * y, x, rightwards)
    oxygen = max(0, game.oxygen) * 10 // 200
    picture[start + 790 : start + 790 + oxygen] = _ONES[:oxygen]
    # The game sets the count to -1 after surfacing with six divers.
    divers = max(0, game.diver_count)
    picture[start + 899 - divers : start + 899] = _ONES[:divers]


def _space_invaders(game: Any, picture: bytearray, start: int) -> None:
    picture[start + 90 + game.pos] = 1
    aliens = game.aliens.to_bytes(100, "little")
    picture[start + 100 : start + 200] = aliens
    side = start + (200 if game.alien_dir < 0 else 300)
    picture[side : side + 100] = aliens
    picture[start + 400 : start + 500] = game.friendly_bullets.to_bytes(100, "little")
    picture[start + 500 : start + 600] = game.enemy_bullets.to_bytes(100, "little")


def _trail(picture: bytearray, row: int, x: int, rightwards: bool) -> None:
    """Marks the cell behind an object that moves from ``x``, unless it is off the board."""
    back = x - 1 if rightwards else x + 1
    if 0 <= back <= 9:
        picture[row + back] = 1


#: ``draw`` of each game.
DRAWINGS: dict[str, Callable[[Any, bytearray, int], None]] = {
    "asterix": _asterix,
    "breakout": _breakout,
    "freeway": _freeway,
    "seaquest": _seaquest,
    "space_invaders": _space_invaders,
}
