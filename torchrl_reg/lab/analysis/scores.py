"""Scores of runs, and scales on which scores of different tasks can be averaged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_reg.lab.analysis import published
from torchrl_reg.lab.analysis.groups import Group
from torchrl_reg.lab.analysis.runs import RunRecord
from torchrl_reg.lab.analysis.statistics import Array
from torchrl_reg.lab.documents import hint, one_of
from torchrl_reg.lab.errors import UserError

#: ``auto`` is human for Atari, SAC for MuJoCo's tasks, none for the rest; ``own_sac`` is the SAC of the same runs.
SCALES = ("auto", "human", "sac", "own_sac", "none")
#: The default metric.
EVALUATION = "return_greedy_mean"
#: Frames of the SAC runs whose returns are 1 on the scale ``sac``.
SAC_LENGTHS = (3_200_000, 1_000_000)
#: Display names of scores on a scale.
SCALE_NAMES = {
    **{"human": "human-normalized", "sac": "SAC-normalized", "own_sac": "own-SAC-normalized"},
    "none": "return",
}


@dataclass(frozen=True)
class Scores:
    """The scores of one method on one environment.

    Args:
        group: the runs.
        values: scores ``[n]`` of the runs that have one, in the unit of the returns.
        frames: environment frames at the last evaluation of each of these runs.
        left_out: a sentence for each run without a score.
    """

    group: Group
    values: Array
    frames: tuple[int, ...]
    left_out: tuple[str, ...] = ()


def run_score(run: RunRecord, how: str = "final", column: str = "return_greedy_mean") -> float:
    """The score of a run: its ``final`` or ``best`` evaluation, the mean of the ``last<k>``, or ``auc``.

    ``auc`` is the mean of the learning curve over frames, ``integral of return d frames / (last - first frame)``
    (trapezoids).

    Raises:
        UserError: ``how`` is none of these, or the run has no such evaluations.
    """
    frames, values = run.evaluations(column)
    if not len(values):
        raise UserError(f"{run.path} must hold evaluations of {column}, got none.")
    if how == "best":
        return float(values.max())
    if how == "auc":
        span = frames[-1] - frames[0]
        return float(np.trapezoid(values, frames) / span) if span else float(values[0])
    return float(values[-last_evaluations(how) :].mean())


def last_evaluations(how: str) -> int:
    """The number of evaluations averaged by the score ``how``: 5 for ``last5``, 1 for the others.

    Raises:
        UserError: ``how`` is not a score.
    """
    if how in ("final", "best", "auc"):
        return 1
    found = re.fullmatch(r"last([1-9]\d*)", how)
    if not found:
        raise UserError(f"score must be final, best, auc or last<k>, such as last5, got {how!r}.")
    return int(found[1])


def group_scores(
    groups: Iterable[Group], how: str = "final", column: str = "return_greedy_mean", *, unfinished: bool = False
) -> list[Scores]:
    """The scores of each group; unfinished runs count only with ``unfinished``.

    Raises:
        UserError: ``how`` is not a score, or no run has one.
    """
    last_evaluations(how)
    return require_scores([scores_of(group, how, column, unfinished=unfinished) for group in groups])


def require_scores(found: Sequence[Scores]) -> list[Scores]:
    """Returns ``found``.

    Raises:
        UserError: no run has a score.
    """
    if not any(len(scores.values) for scores in found):
        reasons = dict.fromkeys(reason for scores in found for reason in scores.left_out)
        raise UserError(f"results must hold at least one run with a score, got none: {'; '.join(list(reasons)[:3])}.")
    return list(found)


def scores_of(group: Group, how: str, column: str, *, unfinished: bool = False) -> Scores:
    """The scores of a group, and sentences for its runs without one."""
    values, frames, left_out = [], [], []
    for run in group.runs:
        evaluated, _ = run.evaluations(column)
        if not len(evaluated):
            left_out.append(f"{run.path} has no evaluation of {column}")
        elif run.ends_without(column):
            left_out.append(f"{run.path} is left out, as {column} of its last evaluation is not a finite number")
        elif run.done is None and not unfinished:
            left_out.append(f"{run.path} is not finished ({evaluated[-1]} frames; --unfinished includes it)")
        else:
            values.append(run_score(run, how, column))
            frames.append(int(evaluated[-1]))
    return Scores(group, np.array(values), tuple(frames), tuple(left_out))


def scale_of(envs: Sequence[str], wanted: str = "auto") -> str:
    """The scale (``human``, ``sac``, ``own_sac`` or ``none``) for ``envs``.

    ``human`` needs Atari games only, one of them with a human score; averages leave out games without one
    (:meth:`Scoreboard.on_scale`).

    Raises:
        UserError: ``wanted`` is not a scale, or does not apply to one of ``envs``.
    """
    one_of("normalize", wanted, SCALES)
    scored = any(has_score(env, "human") for env in envs)
    suits = {
        "human": lambda env: env.startswith("atari/") and (scored or not envs),
        "sac": lambda env: has_score(env, "sac"),
        "own_sac": lambda env: has_score(env, "own_sac"),
    }
    if wanted == "auto":
        return next((scale for scale in ("human", "sac") if all(map(suits[scale], envs))), "none")
    if unsuited := [env for env in envs if wanted in suits and not suits[wanted](env)]:
        kinds = {"human": "Atari games with a human score", "sac": "the MuJoCo tasks with a SAC score"}
        kind = kinds.get(wanted, "tasks of MuJoCo and Adroit with a random score")
        raise UserError(f"normalize={wanted} must be used with {kind} only, got {', '.join(unsuited)}.")
    return wanted


def has_score(env: str, scale: str) -> bool:
    """True if ``env`` has a reference score on ``scale``; always on ``none`` and ``range``."""
    if scale == "human":
        return env.startswith("atari/") and published.has_human_score(_task(env))
    reference = published.sac_returns()[1_000_000] if scale == "sac" else published.random_returns()
    return scale in ("none", "range") or _task(env) in reference


def normalized(env: str, returns: Array, scale: str, frames: int) -> Array:
    """``returns`` on ``scale``: 0 is the random policy, 1 a human or SAC; unchanged for ``none``.

    Args:
        env: ``"atari/Pong"`` or ``"mujoco/hopper"``.
        frames: length of the runs, which selects SAC's reference returns (:func:`sac_frames`).
    """
    if scale == "human":
        return published.human_normalized_score(_task(env), returns)
    if scale == "sac":
        sac = published.sac_returns()[sac_frames(frames)][_task(env)]
        return published.normalized_score(returns, published.random_returns()[_task(env)], sac)
    return returns


def sac_frames(frames: int) -> int:
    """The length of SAC's published runs nearest to ``frames`` in ratio."""
    return min(SAC_LENGTHS, key=lambda length: abs(np.log(length / max(frames, 1))))


class Scoreboard:
    """Scores of methods on environments, and the scale on which environments can be averaged.

    Args:
        scores: scores of the groups to compare.
        scale: ``human``, ``sac``, ``none``, ``own_sac`` (0 is the random policy and 1 the mean of the best SAC among
            ``scores``), or ``range`` (0 is the worst run on an environment and 1 the best).

    Attributes:
        methods, envs: in the order of ``scores``.
        frames: environment frames of the longest run.
    """

    def __init__(self, scores: Sequence[Scores], scale: str = "none") -> None:
        self.scores, self.scale = scores, scale
        self.methods = list(dict.fromkeys(each.group.method for each in scores))
        self.envs = list(dict.fromkeys(each.group.env for each in scores))
        self.frames = max((frames for each in scores for frames in each.frames), default=0)

    def on_scale(self) -> Scoreboard:
        """A scoreboard of the environments with a reference score on the scale."""
        return Scoreboard([each for each in self.scores if has_score(each.group.env, self.scale)], self.scale)

    def method_scores(self, method: str) -> dict[str, Array]:
        """The scores of ``method`` by environment.

        Raises:
            UserError: no such method.
        """
        if method not in self.methods:
            near = hint(method, self.methods, cutoff=0.4)
            raise UserError(f"method must be one of {', '.join(map(repr, self.methods))}, got {method!r}.{near}")
        return {each.group.env: each.values for each in self.scores if each.group.method == method and len(each.values)}

    def normalized(self, env: str, values: Array) -> Array:
        """``values`` of ``env`` on the scale.

        Raises:
            UserError: the scale is ``own_sac`` and SAC has no run on ``env``.
        """
        if self.scale == "own_sac":
            of = [each for each in self.scores if each.group.env == env and len(each.values)]
            own = [float(each.values.mean()) for each in of if each.group.recipe == "sac"]
            if not own:
                raise UserError(f"normalize=own_sac must be used with runs of sac.py on every task, got none on {env}.")
            return published.normalized_score(values, published.random_returns()[_task(env)], max(own))
        if self.scale != "range":
            return normalized(env, values, self.scale, self.frames)
        every = np.concatenate([each.values for each in self.scores if each.group.env == env])
        low, high = every.min(), every.max()
        return (values - low) / (high - low) if high > low else np.ones(len(values))

    def comparable(self) -> dict[str, list[Array]]:
        """The input of averages over environments: by method, an array of scores on the scale per environment.

        Methods that lack an environment and environments without a reference score are left out.
        """
        board = self.on_scale()
        runs = {method: board.method_scores(method) for method in board.methods}
        return {
            method: [board.normalized(env, found[env]) for env in board.envs]
            for method, found in runs.items()
            if len(found) == len(board.envs)
        }


def _task(env: str) -> str:
    return env.rpartition("/")[2]
