"""Tables of finished runs as Markdown, LaTeX and tidy CSV, with caveats."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.curves import group_curve
from torchrl_reg.lab.analysis.groups import Group
from torchrl_reg.lab.analysis.inference import CAPS, Difference, Sample, at_cap, fisher, holm, verdict, welch
from torchrl_reg.lab.analysis.numbers import amount, counted
from torchrl_reg.lab.analysis.published import published_names, published_table
from torchrl_reg.lab.analysis.runs import RunRecord
from torchrl_reg.lab.analysis.scores import SCALE_NAMES, Scoreboard, Scores, has_score, sac_frames
from torchrl_reg.lab.analysis.statistics import Array, Estimate, probability_of_improvement, stratified_estimate
from torchrl_reg.lab.errors import UserError


def warnings(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    *,
    scale: str = "none",
    baseline: str | None = None,
    averaged: bool = True,
) -> list[str]:
    """Sentences on runs left out, diverged or of mixed commits, on incomplete methods, and on incomplete labels.

    Args:
        groups, scores: the contents of the tables.
        scale: scale of the averages, for a note on games without a score on it.
        baseline: method of the probabilities of improvement.
        averaged: adds notes on what averages over environments leave out.
    """
    found = [reason for each in scores for reason in each.left_out]
    found += diverged_runs([run for group in groups for run in group.runs])
    found += mixed_commits(groups) + moved_runs(groups)
    if averaged:
        there = {(each.group.method, each.group.env): len(each.values) > 0 for each in scores}
        found += _average_notes(there, scale, baseline)
    return found + label_notes(groups)


def curve_warnings(groups: Sequence[Group], column: str, *, scale: str = "none", averaged: bool = False) -> list[str]:
    """As :func:`warnings`, for curves, ``averaged`` over environments on ``scale`` or not."""
    found = _curve_notes(groups, column) + mixed_commits(groups)
    if averaged:
        found += _average_notes({(group.method, group.env): True for group in groups}, scale)
    return found + label_notes(groups)


def _curve_notes(groups: Sequence[Group], column: str) -> list[str]:
    """Sentences on unfinished runs, runs without evaluations, and seeds longer than the curves."""
    runs = [run for group in groups for run in group.runs]
    found = []
    if unfinished := [str(run.path) for run in runs if run.done is None]:
        are = "is" if len(unfinished) == 1 else "are"
        found.append(f"{len(unfinished)} of {len(runs)} runs {are} not finished: {_first_three(unfinished, ', ')}")
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
    """A sentence on groups whose seeds were run at several commits, if any."""
    mixed = [f"{g.method} on {g.env} at {', '.join(g.commits)}" for g in groups if len(g.commits) > 1]
    return [f"seeds were run at several commits: {_first_three(mixed)}"] if mixed else []


def diverged_runs(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence on runs whose values exceeded the bound set by rewards, if any."""
    diverged = [f"{run.path} at frame {run.diverged_frames:,}" for run in runs if run.diverged_frames is not None]
    return [f"values diverged in {_first_three(diverged, ', ')}"] if diverged else []


def moved_runs(groups: Sequence[Group]) -> list[str]:
    """A sentence on runs whose starts differ in torch, commit, device or threads, if any."""
    runs = [run for group in groups for run in group.runs]
    moved = [f"{run.path} ({' and '.join(changed)})" for run in runs if (changed := _changed(run))]
    were = "1 run was" if len(moved) == 1 else f"{len(moved)} runs were"
    which = f"{were} started on one machine or commit and resumed on another: {_first_three(moved)}"
    return [which] if moved else []


def _changed(run: RunRecord) -> list[str]:
    starts = [{**start, "torch": (start.get("versions") or {}).get("torch")} for start in run.starts]
    names = ("torch", "commit", "device", "threads")
    return [name for name in names if len({str(s[name]) for s in starts if s.get(name) is not None}) > 1]


def label_notes(groups: Sequence[Group]) -> list[str]:
    """Sentences on settings that differ along with those in a label, which may also explain a difference."""
    found = {}
    for group in groups:
        named = {word.partition("=")[0] for word in group.method.split()[1:]}
        hidden = [key for key in group.settings if not {key, key.rpartition(".")[2], key.removesuffix(".name")} & named]
        if hidden:
            found[group.recipe] = f"runs of {group.recipe} also differ in {', '.join(hidden)}, along with their label"
    return list(found.values())


def unscored_note(envs: Iterable[str], scale: str) -> list[str]:
    """A sentence on environments that averages on ``scale`` leave out, if any."""
    envs = list(dict.fromkeys(envs))
    without = [env.removeprefix("atari/") for env in envs if not has_score(env, scale)]
    have, them = ("has", "it") if len(without) == 1 else ("have", "them")
    which = f"{len(without)} of {len(envs)} games {have} no human score: {', '.join(without)}"
    return [f"{which}; averages over environments leave {them} out"] if without else []


def _average_notes(there: Mapping[tuple[str, str], bool], scale: str, baseline: str | None = None) -> list[str]:
    """Sentences on environments without a reference score, and on methods that lack an environment.

    ``there`` is True for each (method, environment) with runs.
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


_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", **{c: rf"\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}", ">": "$>$"}
)


@dataclass(frozen=True)
class Row:
    """A line of a table: a method on an environment, or (``env="all"``) over all environments."""

    env: str
    method: str
    runs: int
    frames: str = ""
    commits: str = ""
    numbers: Mapping[str, Estimate | float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table with notes.

    Args:
        title: a line.
        rows: the lines, in order.
        columns: names of the numbers and words to show, in order; rows may lack some, or have more for files.
        notes: sentences below the table.
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
    """Mean over seeds of each method on each environment, with its 95% interval (Student's t).

    If seeds reach the cap of an environment (CartPole: 500), the mean has no interval, and the share of seeds at the
    cap is added.

    Args:
        scores: from :func:`torchrl_reg.lab.analysis.scores.group_scores`.
        scale: ``human`` or ``sac`` add a column with the mean on that scale.
        baseline: label of a method; adds the difference from it and the verdict.
        published: ``mirl``, ``ments`` or ``sac``; adds its columns, in the unit of the scale (percents as fractions).

    Raises:
        UserError: an unknown baseline or published table, or a published one that shares no game with ``scores``.
    """
    board = Scoreboard(scores, scale)
    reference = {} if baseline is None else board.method_scores(baseline)
    scored = [each for each in scores if len(each.values)]
    paper = _published_numbers(board.envs, published)
    found: dict[tuple[str, str], tuple[Estimate | float, str]] = {}
    for env, there in reference.items():
        others = {e.group.method: e.values for e in scored if e.group.env == env and e.group.method != baseline}
        found |= {(env, method): each for method, each in differences(env, others, there).items()}
    rows = []
    for each in scored:
        group = each.group
        numbers: dict[str, Estimate | float] = {}
        words: dict[str, str] = {}
        cap = at_cap(group.env, each.values)
        numbers["mean"] = float(each.values.mean()) if cap else stratified_estimate([each.values], statistics.mean)
        if cap is not None:
            words[f"at {CAPS[group.env]:g}"] = share_text(cap, len(each.values))
        if scale != "none" and has_score(group.env, scale):
            scaled = board.normalized(group.env, each.values)
            numbers[SCALE_NAMES[scale]] = stratified_estimate([scaled], statistics.mean)
        if (compared := found.get((group.env, group.method))) is not None:
            numbers[f"minus {baseline}"], words["verdict"] = compared
        numbers |= paper.get(group.env, {})
        commits = ", ".join(group.commits)
        length = frames_text(each.frames)
        rows.append(Row(group.env, group.method, len(each.values), length, commits, _without_flat(numbers), words))
    notes = _notes(board)
    if baseline is not None:
        notes.append(
            f"minus {baseline}: with Welch's 95% interval; the verdict is at 5% for all methods of an environment "
            "together (Holm), on shares at the cap by Fisher's exact test where seeds are there."
        )
    if published is not None:
        table = published_table(published)
        notes.append(f"({published}): {table.source}, {table.unit.replace(' %', '')}; {table.note}.")
    return Table(title, tuple(rows), _columns(rows), tuple(notes))


def differences(
    env: str, methods: Mapping[str, Array], baseline: Array, margin: float | None = None
) -> dict[str, tuple[Estimate | float, str]]:
    """By method, its mean minus that of ``baseline`` and the verdict, corrected over all methods (Holm).

    Uses Welch's t, or Fisher's exact test of the shares of seeds at the cap of ``env`` if either has any.
    """
    found: dict[str, Difference] = {}
    ps: list[float] = []
    capped: dict[str, float] = {}  # the difference of shares, which may have another sign than that of means
    for method, values in methods.items():
        shares = [(at_cap(env, of), len(of)) for of in (values, baseline)]
        found[method] = welch(Sample.from_scores(values), Sample.from_scores(baseline))
        if any(share for share, _ in shares):
            counts = [(round(share.value * seeds) if share else 0, seeds) for share, seeds in shares]
            capped[method] = counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1]
            ps.append(fisher(*counts))
        else:
            ps.append(found[method].p)
    texts: dict[str, tuple[Estimate | float, str]] = {}
    for (method, each), p in zip(found.items(), holm(ps), strict=True):
        if method in capped:
            texts[method] = (each.value, "undecided" if p >= 0.05 else "above" if capped[method] > 0 else "below")
        elif math.isnan(each.error):
            texts[method] = (each.value, verdict(each, p).word)
        else:
            texts[method] = (each.interval, str(verdict(each, p, margin)))
    return texts


def share_text(share: Estimate, seeds: int) -> str:
    """A share of seeds with its interval, as counts.

    >>> share_text(Estimate(0.6, 0.147, 0.947), 5)
    '3 of 5 [0.15, 0.95]'
    """
    return f"{round(share.value * seeds)} of {seeds} [{share.low:.2f}, {share.high:.2f}]"


def aggregate_table(scores: Sequence[Scores], *, scale: str, baseline: str | None = None) -> Table | None:
    """IQM, median, mean and optimality gap over all environments, and the probability of improvement on ``baseline``.

    Contains the methods with runs on all environments with a score on ``scale``; a baseline that lacks one gives no
    probabilities. None if nothing can be averaged: several environments without a common scale and no baseline, or a
    single environment without a scale.

    Raises:
        UserError: ``baseline`` is not a method.
    """
    board = Scoreboard(scores, scale)
    found, envs = board.comparable(), board.on_scale().envs
    reference = found.get(baseline) if baseline is not None and board.method_scores(baseline) else None
    rows = []
    for method, runs in found.items():
        numbers: dict[str, Estimate | float] = {}
        if scale != "none":
            numbers |= {name: stratified_estimate(runs, estimator) for name, estimator in statistics.AGGREGATES.items()}
        if reference is not None and method != baseline:
            numbers[f"P(> {baseline})"] = probability_of_improvement(runs, reference)
        rows.append(Row("all", method, sum(map(len, runs)), numbers=_without_flat(numbers)))
    if not any(row.numbers for row in rows) or (scale == "none" and len(envs) == 1):
        return None
    unit = {"human": ", 1 is a human", "sac": ", 1 is SAC", "own_sac": ", 1 is SAC here", "none": ""}[scale]
    over = counted(len(envs), "environment") if len(envs) > 1 else envs[0]
    return Table(f"{SCALE_NAMES[scale]} over {over}{unit}", tuple(rows), _columns(rows))


def _notes(board: Scoreboard) -> list[str]:
    notes = [
        "In brackets: 95% interval over runs: of the mean on one environment Student's t, of shares Clopper and "
        f"Pearson's, of aggregates a stratified bootstrap from {statistics.BOOTSTRAP_RUNS} runs on; none where all "
        "runs are alike or at the cap."
    ]
    if board.scale == "sac":
        frames = amount(sac_frames(board.frames))
        notes.append(f"SAC-normalized: random actions 0, Dopamine's SAC at {frames} frames (MuJoCo v2) 1.")
    if board.scale == "own_sac":
        notes.append("own-SAC-normalized: random actions 0, the mean of the best SAC among these runs 1.")
    if any(env.lower() in ("atari/videopinball", "atari/video_pinball") for env in board.envs):
        notes.append("VideoPinball's random score is 16256.9 here, 0 in rliable's table: compare means with care.")
    return notes


def _published_numbers(envs: Sequence[str], name: str | None) -> dict[str, dict[str, float]]:
    if name is None:
        return {}
    table = published_table(name)
    unit = 100 if table.unit.endswith("%") else 1
    found = {}
    for env in envs:
        family, _, game = env.partition("/")
        if family == table.family and (row := table.row(game)):
            found[env] = {f"{method} ({name})": number / unit for method, number in row.items()}
    if not found:
        raise UserError(
            f"published={name} must share a game of {table.family} with the results, got "
            f"{', '.join(envs)}; it has {', '.join(table.scores)}."
        )
    return found


def frames_text(frames: Sequence[int]) -> str:
    """The range of lengths of runs.

    >>> frames_text([60_000, 60_000]), frames_text([1_000, 60_000, 2_000])
    ('60k', '1k to 60k')
    """
    return " to ".join(dict.fromkeys(map(amount, (min(frames), max(frames)))))


def _without_flat(numbers: Mapping[str, Estimate | float]) -> dict[str, Estimate | float]:
    """``numbers`` without intervals of no width, which would suggest certainty."""
    return {
        name: number.value if isinstance(number, Estimate) and number.is_flat else number
        for name, number in numbers.items()
    }


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in (*row.numbers, *row.words))
    # The columns of papers last, in any order of rows.
    return tuple(sorted(names, key=lambda name: name.endswith(tuple(f"({paper})" for paper in published_names()))))


def markdown(tables: Sequence[Table]) -> str:
    """GitHub's Markdown, with numbers as ``mean [low, high]``."""
    blocks = []
    for table in tables:
        header, *rows = _cells(table)
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)
        blocks.append("\n\n".join([f"**{table.title}**", text, *table.notes]))
    return "\n\n".join(blocks) + "\n"


def markdown_text(name: str) -> str:
    r"""``name`` escaped for a Markdown table, which would interpret HTML.

    >>> markdown_text("a|b <img>")
    'a\\|b &lt;img>'
    """
    return name.replace("|", r"\|").replace("&", "&amp;").replace("<", "&lt;")


def latex(tables: Sequence[Table]) -> str:
    """LaTeX tabulars for the booktabs package."""
    blocks = []
    for table in tables:
        header, *rows = ([cell.translate(_LATEX) for cell in line] for line in _cells(table))
        body = [" & ".join(line) + r" \\" for line in rows]
        words = sum(1 for name in ("env", "method") if name in header)
        begin = rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}"
        head = [begin, r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
        notes = [f"% {note}" for note in (table.title, *table.notes)]
        blocks.append("\n".join([*notes, *head, *body, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def tidy_csv(tables: Sequence[Table]) -> str:
    """CSV with a line per number or word, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["env", "method", "runs", "frames", "commits", "statistic", "value", "low", "high"])
    for table in tables:
        for row in table.rows:
            for name, value in (*row.numbers.items(), *row.words.items()):
                ends = value if isinstance(value, Estimate) else (value, "", "")
                writer.writerow([row.env, row.method, row.runs, row.frames, row.commits, name, *ends])
    return out.getvalue()


#: Formats of ``torchrl-reg table``.
FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": markdown, "latex": latex, "csv": tidy_csv}


def number_text(number: Estimate | float | None) -> str:
    """``value [low, high]``, with the decimals that give the largest about three digits.

    >>> number_text(Estimate(0.5, -0.123, 0.9)), number_text(Estimate(499.6, 480.2, 500.0)), number_text(None)
    ('0.50 [-0.12, 0.90]', '500 [480, 500]', '')
    """
    if number is None:
        return ""
    ends = number if isinstance(number, Estimate) else (number,)
    largest = max(map(abs, ends))
    decimals = 0 if largest >= 99.95 else 1 if largest >= 9.995 else 2
    value, *interval = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in ends)  # + 0 turns -0.0 into 0.0
    return f"{value} [{', '.join(interval)}]" if interval else value


def _cells(table: Table) -> list[list[str]]:
    """Header and lines, without empty columns; ``env`` is left out if all rows are over all environments."""
    runs = "seeds" if any(row.commits for row in table.rows) else "runs"
    over_all = all(row.env == "all" for row in table.rows)
    lines = [
        {"env": "" if over_all else row.env, "method": row.method, runs: str(row.runs), "frames": row.frames}
        | {name: row.words.get(name) or number_text(row.numbers.get(name)) for name in table.columns}
        | {"commits": row.commits}
        for row in table.rows
    ]
    header = [name for name in (lines or [{}])[0] if any(line[name] for line in lines)]
    return [header, *([line[name] for name in header] for line in lines)]
