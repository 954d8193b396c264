"""Caveats for readers of tables and figures, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torchrl_reg.analysis.curves import group_curve
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.runs import RunRecord
from torchrl_reg.analysis.scores import Scores, has_score


def warnings(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    *,
    scale: str = "none",
    baseline: str | None = None,
    averaged: bool = True,
) -> list[str]:
    """Runs left out, diverged or of mixed commits, methods missing on some environments, settings hidden by a label.

    Args:
        groups, scores: what is shown.
        scale: that of the averages; names the games without a score on it.
        baseline: whose probability of improvement is shown.
        averaged: whether something over all environments follows, so that it matters what is not in it.
    """
    found = [reason for each in scores for reason in each.left_out]
    found += diverged_runs([run for group in groups for run in group.runs])
    found += mixed_commits(groups) + moved_runs(groups)
    if averaged:
        there = {(each.group.method, each.group.env): len(each.values) > 0 for each in scores}
        found += _average_notes(there, scale, baseline)
    return found + label_notes(groups)


def curve_warnings(groups: Sequence[Group], column: str, *, scale: str = "none", averaged: bool = False) -> list[str]:
    """The same for curves, ``averaged`` over environments on ``scale`` or not."""
    found = _curve_notes(groups, column) + mixed_commits(groups)
    if averaged:
        found += _average_notes({(group.method, group.env): True for group in groups}, scale)
    return found + label_notes(groups)


def _curve_notes(groups: Sequence[Group], column: str) -> list[str]:
    """What curves of ``groups`` hide: unfinished runs, runs without evaluations, seeds that went further."""
    runs = [run for group in groups for run in group.runs]
    found = []
    if going := [str(run.path) for run in runs if run.done is None]:
        are = "is" if len(going) == 1 else "are"
        found.append(f"{len(going)} of {len(runs)} runs {are} not finished: {_first_three(going, ', ')}")
    if empty := [run.path for run in runs if not len(run.evaluations(column)[0])]:
        found.append(f"{len(empty)} of {len(runs)} runs have no evaluation of {column}, such as {empty[0]}")
    short = []
    for group in groups:
        curve, longest = group_curve(group, column), max(run.last_evaluation(column) for run in group.runs)
        if curve is not None and curve[0][-1] < longest:
            short.append(f"{group.method} on {group.env} at {curve[0][-1]} of {longest} frames")
    if short:
        found.append(f"curves end where the shortest seed does: {_first_three(short)}")
    return found


def mixed_commits(groups: Sequence[Group]) -> list[str]:
    """A sentence on the groups whose seeds were run at several commits, if any."""
    mixed = [f"{g.method} on {g.env} at {', '.join(g.commits)}" for g in groups if len(g.commits) > 1]
    return [f"seeds were run at several commits: {_first_three(mixed)}"] if mixed else []


def diverged_runs(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence on the runs whose values outgrew what rewards allow, if any."""
    diverged = [f"{run.path} at frame {run.diverged_frames:,}" for run in runs if run.diverged_frames is not None]
    return [f"values diverged in {_first_three(diverged, ', ')}"] if diverged else []


def moved_runs(groups: Sequence[Group]) -> list[str]:
    """A sentence on the runs whose starts differ in torch, commit, device or threads, if any."""
    runs = [run for group in groups for run in group.runs]
    moved = [f"{run.path} ({' and '.join(changed)})" for run in runs if (changed := _changed(run))]
    were = "1 run was" if len(moved) == 1 else f"{len(moved)} runs were"
    which = f"{were} begun on one machine or code and resumed on another: {_first_three(moved)}"
    return [which] if moved else []


def _changed(run: RunRecord) -> list[str]:
    starts = [{**start, "torch": (start.get("versions") or {}).get("torch")} for start in run.starts]
    names = ("torch", "commit", "device", "threads")
    return [name for name in names if len({str(s[name]) for s in starts if s.get(name) is not None}) > 1]


def label_notes(groups: Sequence[Group]) -> list[str]:
    """Settings that differ along with those a label names, so that readers do not credit the named one alone."""
    found = {}
    for group in groups:
        named = {word.partition("=")[0] for word in group.method.split()[1:]}
        hidden = [key for key in group.settings if not {key, key.rpartition(".")[2], key.removesuffix(".name")} & named]
        if hidden:
            found[group.recipe] = f"runs of {group.recipe} also differ in {', '.join(hidden)}, along with their label"
    return list(found.values())


def unscored_note(envs: Iterable[str], scale: str) -> list[str]:
    """A sentence on the environments that averages on ``scale`` leave out, if any."""
    envs = list(dict.fromkeys(envs))
    without = [env.removeprefix("atari/") for env in envs if not has_score(env, scale)]
    have, them = ("has", "it") if len(without) == 1 else ("have", "them")
    which = f"{len(without)} of {len(envs)} games {have} no human score: {', '.join(without)}"
    return [f"{which}; averages over environments leave {them} out"] if without else []


def _average_notes(there: Mapping[tuple[str, str], bool], scale: str, baseline: str | None = None) -> list[str]:
    """What averages leave out: environments without a score, and methods that lack one on which others have runs.

    ``there``: whether a method has any runs on an environment.
    """
    pairs = [pair for pair in there if has_score(pair[1], scale)]
    envs = sorted({env for _, env in pairs})
    lacking = {}
    for method in dict.fromkeys(method for method, _ in pairs):
        if gone := [env for env in envs if not there.get((method, env))]:
            lacking[method] = ", ".join(gone) if len(gone) <= 6 else f"{', '.join(gone[:5])} and {len(gone) - 5} more"
    found = unscored_note((env for _, env in there), scale)
    if len(lacking) == 1:
        found += [f"{method} is in no aggregate, as it lacks {gone}" for method, gone in lacking.items()]
    elif lacking:
        which = "; ".join(f"{method} lacks {gone}" for method, gone in lacking.items())
        found.append(f"{len(lacking)} methods are in no aggregate: {which}")
    if baseline in lacking:
        found.append(f"there is no P(> {baseline}) over all environments, as {baseline} lacks some")
    return found


def _first_three(texts: Sequence[str], separator: str = "; ") -> str:
    return separator.join([*texts[:3], *(["..."] if len(texts) > 3 else [])])
