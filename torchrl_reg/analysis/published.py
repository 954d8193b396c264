"""Published numbers that come with the package: Atari reference scores, Atari tables of two papers, SAC on MuJoCo."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from numpy.typing import ArrayLike, NDArray

from torchrl_reg.analysis.errors import AnalysisError
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


_TABLES = MappingProxyType(
    {
        "mirl": (
            "published_mirl_atari.csv",
            "Grau-Moya et al. (2019), Soft Q-learning with mutual-information regularization",
            "human-normalized %",
            "normalized by the random and human scores of Mnih et al. (2015), not by those used here "
            "(Boxing's human score: 4.3 there, 12.1 here)",
        ),
        "ments": (
            "published_ments_atari.csv",
            "Xiao et al. (2019), Maximum entropy Monte-Carlo planning",
            "return",
            "planning with a trained network at every step",
        ),
        "sac": (
            "published_sac_mujoco.csv",
            "Dopamine's JAX SAC, baseline result files in github.com/google/dopamine",
            "return",
            "mean of 5 seeds after that many frames, one update a frame; returns while training (sampled actions), on "
            "gym's v2 tasks",
        ),
    }
)
#: Names of the tables :func:`published_table` knows.
PUBLISHED = tuple(_TABLES)


@cache
def published_table(name: str) -> PublishedTable:
    """The table ``name``, one of ``PUBLISHED``.

    Raises:
        AnalysisError: another name.

    >>> published_table("mirl").of("space_invaders")["mirl"]
    164.79
    """
    if name not in _TABLES:
        raise AnalysisError(f"published must be one of {', '.join(PUBLISHED)}, got {name!r}.")
    file, source, unit, note = _TABLES[name]
    rows = _read(file)
    columns = tuple(key for key in rows[0] if key != "game")
    scores = {row["game"]: MappingProxyType({key: float(row[key]) for key in columns}) for row in rows}
    family = "mujoco" if file.endswith("_mujoco.csv") else "atari"
    return PublishedTable(source, unit, note, columns, MappingProxyType(scores), family)


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
    names = {_key(name): name for name in atari_reference_scores()}
    if _key(game) not in names:
        raise AnalysisError(f"game must be an Atari game with reference scores, got {game!r}.{_hint(game, names)}")
    random, human = atari_reference_scores()[names[_key(game)]]
    return normalized_score(score, random, human)


def has_human_score(game: str) -> bool:
    """Whether :func:`human_normalized_score` knows ``game``."""
    return _key(game) in {_key(name) for name in atari_reference_scores()}


def _hint(game: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(_key(game), names, n=1)
    proper = next((name for name in atari_reference_scores() if near and _key(name) == near[0]), None)
    return f" Did you mean {proper!r}?" if proper else ""


def _key(game: str) -> str:
    return "".join(letter for letter in game.lower() if letter.isalnum())


def _read(name: str) -> list[dict[str, str]]:
    text = files("torchrl_reg.analysis").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
