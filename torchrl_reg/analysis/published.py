"""Published numbers shipped with the package: Atari reference scores, Atari tables of two papers, SAC on MuJoCo."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from numpy.typing import ArrayLike, NDArray

from torchrl_reg.analysis.errors import AnalysisError, hint, one_of
from torchrl_reg.analysis.normalized import normalized_score


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Args:
        source: the paper.
        unit: what the numbers are, ``"human-normalized %"`` or ``"return"``.
        note: what to keep in mind beside numbers of one's own.
        columns: methods, in the paper's order.
        scores: by game (spelled as in ``env.game``) and method.
        family: the environments whose games these are.
    """

    source: str
    unit: str
    note: str
    columns: tuple[str, ...]
    scores: MappingProxyType[str, MappingProxyType[str, float]]
    family: str = "atari"

    def of(self, game: str) -> MappingProxyType[str, float] | None:
        """The row of ``game``, however spelled; None if the paper has none."""
        return next((row for name, row in self.scores.items() if _key(name) == _key(game)), None)


def _text(name: str) -> str:
    return files("torchrl_reg.analysis").joinpath("data", name).read_text(encoding="utf-8")


@cache
def _tables() -> dict[str, dict[str, str]]:
    return json.loads(_text("published.json"))


def published_names() -> tuple[str, ...]:
    """Names of the tables :func:`published_table` knows."""
    return tuple(_tables())


@cache
def published_table(name: str) -> PublishedTable:
    """The table ``name``, one of :func:`published_names`.

    Raises:
        AnalysisError: another name.

    >>> published_table("mirl").of("space_invaders")["mirl"]
    164.79
    """
    one_of("published", name, published_names())
    about = dict(_tables()[name])
    rows = _read(about.pop("file"))
    columns = tuple(key for key in rows[0] if key != "game")
    scores = {row["game"]: MappingProxyType({key: float(row[key]) for key in columns}) for row in rows}
    return PublishedTable(**about, columns=columns, scores=MappingProxyType(scores))


@cache
def atari_reference_scores() -> MappingProxyType[str, tuple[float, float]]:
    """Random and human returns by game: no-op starts, episodes of 108k frames, 57 games (dqn_zoo's ``atari_data``).

    VideoPinball's random return is 16256.9 in this table and 0 in that of Agent57, which rliable uses. That game alone
    then moves the mean human-normalized score of 57 games by several hundred percent; medians and IQM hardly notice.
    """
    return MappingProxyType(
        {row["game"]: (float(row["random"]), float(row["human"])) for row in _read("atari_reference_scores.csv")}
    )


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
        AnalysisError: a game without reference scores.

    >>> float(human_normalized_score("SpaceInvaders", 1668.7))
    1.0
    """
    names = _names()
    if _key(game) not in names:
        near = hint(game.lower(), names.values())
        raise AnalysisError(f"game must be an Atari game with reference scores, got {game!r}.{near}")
    return normalized_score(score, *atari_reference_scores()[names[_key(game)]])


def has_human_score(game: str) -> bool:
    """Whether :func:`human_normalized_score` knows ``game``."""
    return _key(game) in _names()


@cache
def _names() -> dict[str, str]:
    return {_key(name): name for name in atari_reference_scores()}


def _key(game: str) -> str:
    return "".join(letter for letter in game.lower() if letter.isalnum())


def _read(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))
