"""Published numbers (``data/published.yaml``), and scores normalized by a reference agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrl_reg.lab.analysis.numbers import amount
from torchrl_reg.lab.documents import hint, one_of, read_yaml
from torchrl_reg.lab.errors import UserError

#: Sources with tables of many games, for ``torchrl-reg table --published NAME``.
_TABLES = ("mirl", "ments", "sac")


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Args:
        source: the paper.
        unit: unit of the numbers, ``"human-normalized %"`` or ``"return"``.
        note: caveats for a comparison with our numbers.
        columns: methods, in the paper's order.
        scores: numbers by game (spelled as in ``env.game``) and method.
        family: the environments of the games.
    """

    source: str
    unit: str
    note: str
    columns: tuple[str, ...]
    scores: MappingProxyType[str, MappingProxyType[str, float]]
    family: str = "atari"

    def row(self, game: str) -> MappingProxyType[str, float] | None:
        """The row of ``game`` in any spelling; None if the paper has none."""
        return next((row for name, row in self.scores.items() if _key(name) == _key(game)), None)


@cache
def published_file() -> dict[str, Any]:
    """``data/published.yaml``: its ``sources`` and ``scores``."""
    return dict(read_yaml(Path(str(files("torchrl_reg.lab.analysis").joinpath("data", "published.yaml")))))


def rows_of(source: str) -> list[dict[str, Any]]:
    """The published numbers of ``source``, in the order of the file."""
    return [row for row in published_file()["scores"] if row["by"] == source]


def published_names() -> tuple[str, ...]:
    """The names that :func:`published_table` accepts."""
    return _TABLES


@cache
def published_table(name: str) -> PublishedTable:
    """The table ``name``, one of :func:`published_names`.

    Raises:
        UserError: another name.

    >>> published_table("mirl").row("space_invaders")["mirl"]
    164.79
    """
    one_of("published", name, published_names())
    about, rows = published_file()["sources"][name], rows_of(name)
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        column = f"SAC {amount(row['frames'])}" if name == "sac" else row["method"]
        scores.setdefault(row["task"].partition("/")[2], {})[column] = row["mean"]
    columns = tuple(dict.fromkeys(column for of in scores.values() for column in of))
    frozen = MappingProxyType({game: MappingProxyType(of) for game, of in scores.items()})
    family = rows[0]["task"].partition("/")[0]
    return PublishedTable(about["source"], about["unit"], about["note"], columns, frozen, family)


@cache
def atari_reference_scores() -> MappingProxyType[str, tuple[float, float]]:
    """Random and human returns by game: no-op starts, episodes of 108k frames, 57 games (dqn_zoo's ``atari_data``).

    VideoPinball's random return is 16256.9 in this table and 0 in that of Agent57, which rliable uses. This moves the
    mean human-normalized score of 57 games by several hundred percent; medians and IQM hardly change.
    """
    found: dict[str, list[float]] = {}
    for row in rows_of("atari"):
        found.setdefault(row["task"].partition("/")[2], []).append(row["mean"])
    return MappingProxyType({game: (random, human) for game, (random, human) in found.items()})


def human_normalized_score(game: str, score: ArrayLike) -> NDArray:
    """``(score - random) / (human - random)`` on an Atari game: 0 is the random policy, 1 a human.

    Args:
        game: spelled as in ``env.game`` (``"SpaceInvaders"``) or with underscores.
        score: returns ``[*B]``, of unclipped rewards, in points of the game.

    Returns:
        ``[*B]`` without unit, unbounded.

    Source: Mnih et al. 2015, with the scores of :func:`atari_reference_scores`; the MIRL paper's table uses those of
    2015.

    Raises:
        UserError: a game without reference scores.

    >>> float(human_normalized_score("SpaceInvaders", 1668.7))
    1.0
    """
    names = _names()
    if _key(game) not in names:
        near = hint(game.lower(), names.values())
        raise UserError(f"game must be an Atari game with reference scores, got {game!r}.{near}")
    return normalized_score(score, *atari_reference_scores()[names[_key(game)]])


def has_human_score(game: str) -> bool:
    """True if ``game`` has a human score."""
    return _key(game) in _names()


@cache
def _names() -> dict[str, str]:
    return {_key(name): name for name in atari_reference_scores()}


def _key(game: str) -> str:
    return "".join(letter for letter in game.lower() if letter.isalnum())


@cache
def sac_returns() -> Mapping[int, Mapping[str, float]]:
    """Returns of SAC (undiscounted, reward units) by environment frames and task: 20k to 3.2M frames.

    Source: Dopamine's JAX SAC (5 seeds) on gym's MuJoCo v2 tasks. v2 and gymnasium's v5 differ a little (contact
    forces, Hopper's and Walker2d's rewards), so these give only the magnitude to expect; a table needs SAC run on
    the same version.
    """
    found: dict[int, dict[str, float]] = {}
    for row in rows_of("sac"):
        found.setdefault(row["frames"], {})[row["task"].partition("/")[2]] = row["mean"]
    return MappingProxyType({frames: MappingProxyType(of) for frames, of in found.items()})


@cache
def random_returns() -> Mapping[str, float]:
    """Mean return (reward units) of uniformly random actions on gymnasium's v5 tasks, by task."""
    return MappingProxyType({row["task"].partition("/")[2]: row["mean"] for row in rows_of("random")})


def normalized_score(score: ArrayLike, random: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """``(score - random) / (reference - random)``: 0 is the random policy, 1 the reference.

    Args:
        score, random, reference: returns ``[*B]``, broadcast against each other.

    Returns:
        ``[*B]`` without unit, unbounded: below 0 is worse than random, above 1 better than the reference.

    Source: Mnih et al. 2015, with a human as the reference.

    Raises:
        ValueError: a value that is not a finite number, a reference not above random, or shapes that do not broadcast.

    >>> normalized_score([20.0, 2000.0, 3980.0], random=20.0, reference=3980.0).tolist()
    [0.0, 0.5, 1.0]
    """
    score, random, reference = _finite("score", score), _finite("random", random), _finite("reference", reference)
    try:
        score, random, reference = np.broadcast_arrays(score, random, reference)
    except ValueError:
        shapes = f"{score.shape}, {random.shape} and {reference.shape}"
        raise ValueError(f"score, random and reference must have shapes that broadcast, got {shapes}.") from None
    low = reference <= random
    if low.any():
        raise ValueError(
            f"reference must be above random, got reference={reference[low][0]:g} with random={random[low][0]:g}."
        )
    return (score - random) / (reference - random)


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be finite numbers, got {values!r}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, got {array[~np.isfinite(array)][0]}.")
    return array
