"""Finished runs to two tables: every method on every environment, and every method over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torchrl_reg.analysis.aggregates import aggregates, envs_of, known_method, longest, methods_of
from torchrl_reg.analysis.curves import curve_notes
from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.numbers import amount
from torchrl_reg.analysis.published import PUBLISHED, published_table
from torchrl_reg.analysis.scores import Array, Scores, has_score, normalized, on_scale, sac_frames, unscored_note
from torchrl_reg.analysis.statistics import (
    Estimate,
    interquartile_mean,
    mean,
    probability_of_improvement,
    stratified_estimate,
)

#: What the rows of a table are normalized by, in words.
SCALE_NAMES = {"human": "human-normalized", "sac": "SAC-normalized", "none": "return"}


@dataclass(frozen=True)
class Row:
    """One line of a table: a method on an environment, or (``env="all"``) over all of them."""

    env: str
    method: str
    runs: int
    frames: str = ""
    commits: str = ""
    numbers: Mapping[str, Estimate | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows with equal columns and what a reader must know about them.

    Args:
        title: one line.
        rows: in the order to show.
        columns: names of the numbers, in the order to show; a row may lack some.
        notes: sentences for below the table.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


def environment_table(
    scores: Sequence[Scores],
    *,
    scale: str = "none",
    baseline: str | None = None,
    published: str | None = None,
    title: str = "final return",
) -> Table:
    """Mean and IQM over the seeds of every method on every environment, with bootstrap intervals.

    Args:
        scores: from :func:`torchrl_reg.analysis.scores.group_scores`.
        scale: ``human`` or ``sac`` add a column of the mean on that scale.
        baseline: a method's label; adds the probability that a run beats one of its runs.
        published: ``mirl``, ``ments`` or ``sac``; adds its columns, in the unit of the scale (percents as fractions).

    Raises:
        AnalysisError: an unknown baseline or published table, or a published one that shares no game with ``scores``.
    """
    methods, frames = methods_of(scores), longest(scores)
    reference = {} if baseline is None else _by_env(scores, known_method(baseline, methods))
    paper = _published_numbers(scores, published)
    rows = []
    for each in scores:
        if not len(each.values):
            continue
        group = each.group
        numbers: dict[str, Estimate | float] = {
            "mean": stratified_estimate([each.values], mean),
            "IQM": stratified_estimate([each.values], interquartile_mean),
        }
        if scale != "none" and has_score(group.env, scale):
            scaled = normalized(group.env, each.values, scale, frames)
            numbers[SCALE_NAMES[scale]] = stratified_estimate([scaled], mean)
        if group.env in reference and group.method != baseline:
            numbers[f"P(> {baseline})"] = probability_of_improvement([each.values], [reference[group.env]])
        numbers |= paper.get(group.env, {})
        rows.append(
            Row(
                group.env,
                group.method,
                len(each.values),
                _range(each.frames),
                ", ".join(group.commits),
                _honest(numbers, [each.values], [reference.get(group.env, ())]),
            )
        )
    notes = _notes(scores, scale, frames)
    if published is not None:
        table = published_table(published)
        notes.append(f"({published}): {table.source}, {table.unit.replace(' %', '')}; {table.note}.")
    return Table(title, tuple(rows), _columns(rows), tuple(notes))


def aggregate_table(scores: Sequence[Scores], *, scale: str, baseline: str | None = None) -> Table | None:
    """IQM, median, mean and optimality gap over all environments, and the probability of improving on ``baseline``.

    None where nothing can be averaged: several environments without a common scale, and no baseline; or one
    environment without a scale, where :func:`environment_table` says all. Games without a score on ``scale`` are left
    out.
    """
    envs = envs_of(on_scale(scores, scale))
    if scale == "none" and (baseline is None or len(envs) == 1):
        return None
    found = aggregates(scores, scale, baseline=baseline)
    if not any(each.estimates or each.improvement for each in found):
        return None
    rows = []
    for each in found:
        numbers: dict[str, Estimate | float] = dict(each.estimates)
        if each.improvement is not None:
            numbers[f"P(> {baseline})"] = each.improvement
        runs = _by_env(on_scale(scores, scale), each.method).values()
        others = _by_env(on_scale(scores, scale), baseline).values() if baseline is not None else ()
        rows.append(Row("all", each.method, each.runs, numbers=_honest(numbers, runs, others)))
    unit = {"human": ", 1 is a human", "sac": ", 1 is SAC", "none": ""}[scale]
    over = f"{len(envs)} environments" if len(envs) > 1 else envs[0]
    return Table(f"{SCALE_NAMES[scale]} over {over}{unit}", tuple(rows), _columns(rows))


def warnings(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    *,
    scale: str = "none",
    baseline: str | None = None,
    averaged: bool = True,
) -> list[str]:
    """What a reader should know and would not see: runs left out, several commits, methods that lack environments.

    Args:
        groups, scores: what is shown.
        scale: that of the averages; names the games without a score on it.
        baseline: whose probability of improvement is shown.
        averaged: whether something over all environments follows, so that it matters what is not in it.
    """
    found = [reason for each in scores for reason in each.left_out]
    found += mixed_commits(groups) + moved_runs(groups)
    if averaged:
        found += unscored_note(envs_of(scores), scale)
        lacking = lacking_environments(on_scale(scores, scale))
        found += lacking_note(lacking)
        if baseline in lacking:
            found.append(f"there is no P(> {baseline}) over all environments, as {baseline} lacks some")
    return found + label_notes(groups)


def mixed_commits(groups: Sequence[Group]) -> list[str]:
    """A sentence on the groups whose seeds were run at several commits; none where there are none."""
    mixed = [group for group in groups if len(group.commits) > 1]
    if not mixed:
        return []
    which = "; ".join(f"{group.method} on {group.env} at {', '.join(group.commits)}" for group in mixed[:3])
    return [f"seeds were run at several commits: {which}{'; ...' * (len(mixed) > 3)}"]


def moved_runs(groups: Sequence[Group]) -> list[str]:
    """A sentence on the runs whose starts differ in torch, commit, device or threads; none where there are none."""
    found = {}
    for run in (run for group in groups for run in group.runs):
        facts = {
            "torch": [(start.get("versions") or {}).get("torch") for start in run.starts],
            **{name: [start.get(name) for start in run.starts] for name in ("commit", "device", "threads")},
        }
        changed = [name for name, values in facts.items() if len({str(v) for v in values if v is not None}) > 1]
        if changed:
            found[str(run.path)] = " and ".join(changed)
    which = "; ".join(f"{path} ({changed})" for path, changed in list(found.items())[:3])
    if not found:
        return []
    runs = "1 run was" if len(found) == 1 else f"{len(found)} runs were"
    return [f"{runs} begun on one machine or code and resumed on another: {which}{'; ...' * (len(found) > 3)}"]


def lacking_environments(scores: Sequence[Scores]) -> dict[str, list[str]]:
    """Methods without a score on some environment that another has, and which ones."""
    envs = envs_of(scores)
    found = {method: sorted(set(envs) - set(_by_env(scores, method))) for method in methods_of(scores)}
    return {method: missing for method, missing in found.items() if missing}


def label_notes(groups: Sequence[Group]) -> list[str]:
    """Settings that differ along with those a label names, so that a reader does not credit the named one alone."""
    found = {}
    for group in groups:
        named = {word.partition("=")[0] for word in group.method.split()[1:]}
        hidden = [key for key in group.settings if key.rpartition(".")[2] not in named and key not in named]
        hidden = [key for key in hidden if key.removesuffix(".name") not in named]
        if hidden:
            found[group.recipe] = f"runs of {group.recipe} also differ in {', '.join(hidden)}, along with their label"
    return list(found.values())


def lacking_note(lacking: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence on the methods that are in no average, and the environments each lacks; none for no methods."""
    if len(lacking) == 1:
        return [f"{method} is in no aggregate, as it lacks {_few(gone)}" for method, gone in lacking.items()]
    which = "; ".join(f"{method} lacks {_few(gone)}" for method, gone in lacking.items())
    return [f"{len(lacking)} methods are in no aggregate: {which}"] if lacking else []


def curve_warnings(groups: Sequence[Group], column: str, *, scale: str = "none", averaged: bool = False) -> list[str]:
    """What a reader of curves should know; ``averaged`` over environments on ``scale``, or not."""
    found = curve_notes(groups, column) + mixed_commits(groups)
    if averaged:
        found += unscored_note((group.env for group in groups), scale)
        envs = {group.env for group in groups if has_score(group.env, scale)}
        there: dict[str, set[str]] = {}
        for group in groups:
            there.setdefault(group.method, set()).add(group.env)
        found += lacking_note({method: sorted(envs - has) for method, has in there.items() if envs - has})
    return found + label_notes(groups)


def _notes(scores: Sequence[Scores], scale: str, frames: int) -> list[str]:
    notes = ["In brackets: 95% stratified-bootstrap interval over runs; none where all runs are alike or there is one."]
    if scale == "sac":
        notes.append(
            f"SAC-normalized: random actions 0, Dopamine's SAC at {amount(sac_frames(frames))} frames (MuJoCo v2) 1."
        )
    if any(each.group.env.lower() in ("atari/videopinball", "atari/video_pinball") for each in scores):
        notes.append("VideoPinball's random score is 16256.9 here, 0 in rliable's table: compare means with care.")
    return notes


def _published_numbers(scores: Sequence[Scores], name: str | None) -> dict[str, dict[str, float]]:
    if name is None:
        return {}
    table = published_table(name)
    unit = 100 if table.unit.endswith("%") else 1
    found = {}
    for env in envs_of(scores):
        family, _, game = env.partition("/")
        row = table.of(game) if family == table.family else None
        if row:
            found[env] = {f"{method} ({name})": number / unit for method, number in row.items()}
    if not found:
        raise AnalysisError(
            f"published={name} must share a game of {table.family} with the results, got "
            f"{', '.join(envs_of(scores))}; it has {', '.join(table.scores)}."
        )
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def _honest(
    numbers: Mapping[str, Estimate | float],
    runs: Iterable[Sequence[float] | Array],
    baseline: Iterable[Sequence[float] | Array],
) -> dict[str, Estimate | float]:
    """``numbers`` without intervals of no width: those of single runs, which say nothing of certainty.

    A probability of 1 keeps its own, ``[1, 1]``, where several unlike runs are compared.
    """
    unlike = any(len(set(each)) > 1 for each in (*runs, *baseline))

    def flat(name: str, number: Estimate) -> bool:
        return number.low == number.high == number.value and not (unlike and name.startswith("P(> "))

    return {
        name: number.value if isinstance(number, Estimate) and flat(name, number) else number
        for name, number in numbers.items()
    }


def _by_env(scores: Sequence[Scores], method: str) -> dict[str, list[float]]:
    return {each.group.env: each.values.tolist() for each in scores if each.group.method == method and len(each.values)}


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in row.numbers)
    # The papers' columns last, whichever row came first.
    return tuple(sorted(names, key=lambda name: name.endswith(tuple(f"({paper})" for paper in PUBLISHED))))


def _range(frames: Sequence[int]) -> str:
    ends = dict.fromkeys(amount(end) for end in (min(frames), max(frames)))
    return " to ".join(ends)
