"""Verdicts on the claims in ``recipes/claims.yaml``, from rows, by the rules written there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from torchrl_reg.lab.analysis.inference import Difference, Sample, Verdict, fisher, holm, share_estimate, verdict, welch
from torchrl_reg.lab.analysis.numbers import hours
from torchrl_reg.lab.analysis.rows import Row
from torchrl_reg.lab.analysis.statistics import Array, Estimate, interquartile_mean, stratified_estimate
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.settings import WITHOUT_EFFECT

#: Rows by file name.
Rows = Mapping[str, Sequence[Row]]
Claim = Mapping[str, Any]
#: The settings of an arm's runs by its name in claims.yaml; an arm that is absent is a method's name.
_ARMS: dict[str, dict[str, object]] = {
    "peng": {"algo.correct": False, "regularizer.name": "none", "shaping.name": "none"},
    "corrected": {"algo.correct": True, "regularizer.name": "none", "shaping.name": "none"},
    "entropy_corrected": {"algo.correct": True, "regularizer.name": "entropy", "shaping.name": "none"},
    "sparsemax_corrected": {"algo.correct": True, "regularizer.name": "tsallis", "shaping.name": "none"},
    "advantage_gap_corrected": {"algo.correct": True, "shaping.name": "advantage_gap"},
    "munchausen_corrected": {"algo.correct": True, "shaping.name": "munchausen"},
    "munchausen_peng": {"algo.correct": False, "shaping.name": "munchausen"},
    **{name: {"algo.method": name} for name in ("mirl", "sql_m", "sql")},
    "iq": {"script": "recipes/iq.py", "algo.alpha": 0.0, "policy.name": "multicategorical"},
    "m_iq": {"script": "recipes/iq.py", "algo.alpha": 0.9, "policy.name": "multicategorical"},
    "iq gaussian": {"script": "recipes/iq.py", "algo.alpha": 0.0, "policy.name": "gaussian"},
}
_ARMS["iq multicategorical"] = _ARMS["iq"]
#: Minimum greedy return of a seed that has solved a task.
SOLVED = {"cartpole": 475.0, "acrobot": -100.0}
SCORES = {"last100": "last_100", "last greedy": "greedy"}
OPEN = "not run yet"
_UNDECIDED = "undecided at this scale"
#: A measure of ``recipes/studies/exact.py``.
BET = "probability that pseudo-likelihood takes a bet of no gain"


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim.

    Args:
        word: ``shown``, ``contradicted``, ``undecided at this scale``, ``not run yet`` or ``needs a GPU``.
        numbers: the evidence, in a line.
    """

    word: str
    numbers: str


def findings(claims: Sequence[Claim], rows: Rows) -> list[tuple[Claim, Finding]]:
    """The claims, each with its finding."""
    return [(claim, _finding(claim, rows)) for claim in claims]


def _finding(claim: Claim, rows: Rows) -> Finding:
    try:
        found = _RULES.get(claim["id"], _without_rule)(claim, rows)
        noted = "note" in claim and found.word != OPEN
        return replace(found, numbers=f"{found.numbers} ({claim['note']})") if noted else found
    except _MissingRowError as error:
        return Finding(OPEN, f"a row is missing: {error}")


class _MissingRowError(LookupError):
    """The rows of a study lack one that a rule reads."""


class _ByKey(dict[Any, Any]):
    """Rows, or their values, by what tells them apart."""

    def __missing__(self, key: object) -> Any:
        raise _MissingRowError(key)


def arm_scores(claim: Claim, rows: Rows, arm: str, task: str) -> Array:
    """Scores ``[n]`` of the claim's seeds that have run.

    Raises:
        UserError: a seed appears twice, at two settings or commits.
    """
    experiment, frames = claim["experiment"], _frames(claim, arm)
    found = [
        row
        for row in _rows_of(claim, rows.get(experiment["judge"], ()), arm, task)
        if row["seed"] in claim["seeds"] and (frames is None or row["frames"] >= 0.99 * frames)
    ]
    once = len({row["seed"] for row in found}) == len(found)
    if not (once and all(_same_setting(found[0], row) for row in found)):
        raise UserError(
            f"{experiment['judge']} must hold each seed of {arm} on {task} once, at one setting, got several."
        )
    return np.array([_score(claim, row) for row in found], np.float64)


def _same_setting(row: Row, other: Row) -> bool:
    """True if the settings that both rows record agree; older code recorded other ones."""
    one, two = row["config"], other["config"]
    return all(one[name] == two[name] for name in one.keys() & two.keys() - WITHOUT_EFFECT)


def fresh_scores(claim: Claim, rows: Rows) -> dict[str, list[Array]] | None:
    """:func:`arm_scores` of each arm, an array per task; None if seeds are missing."""
    found = {arm: [arm_scores(claim, rows, arm, task) for task in _tasks(claim)] for arm in claim["arms"]}
    complete = all(len(scores) == len(claim["seeds"]) for of in found.values() for scores in of)
    return found if complete else None


def relative(scores: Iterable[Array], to: Iterable[Array]) -> list[Array]:
    """``scores`` of each task divided by the mean of another arm there."""
    return [each / other.mean() for each, other in zip(scores, to, strict=True)]


def relative_iqm(scores: Sequence[Array], to: Sequence[Array], *, level: float = 0.95) -> Estimate:
    """Interquartile mean of :func:`relative` scores; its bootstrap draws the runs of both arms anew in each task."""

    def estimator(runs: Array, sizes: Sequence[int]) -> Array:
        own, parts = sizes[: len(scores)], np.split(runs, np.cumsum(sizes)[:-1], -1)
        means = np.stack([each.mean(-1) for each in parts[len(scores) :]], -1)
        ratios = np.concatenate(parts[: len(scores)], -1) / np.repeat(np.maximum(means, 1e-9), own, -1)
        return interquartile_mean(ratios, own)

    return stratified_estimate([*scores, *to], estimator, level=level)


def _tasks(claim: Claim) -> tuple[str, ...]:
    return tuple(claim["experiment"].get("games") or claim["experiment"]["tasks"])


def _frames(claim: Claim, arm: str) -> int | None:
    """Those of a run of ``arm`` on fresh seeds."""
    frames: int | None = claim["experiment"].get("frames")
    return claim["experiment"].get("fewer_frames", {}).get(arm, frames)


def _score(claim: Claim, row: Row) -> float:
    score: float = row["scores"][SCORES[claim["score"]]][0]
    return score


def _rows_of(claim: Claim, rows: Iterable[Row], arm: str, task: str) -> list[Row]:
    wanted = _ARMS.get(arm, {"method": arm})
    if arm == "dqn" and "mirl" in claim["arms"]:
        wanted = {"algo.method": "dqn"}
    return [
        row
        for row in rows
        if row["env"].rpartition("/")[2] == task
        and all((row["config"] | row).get(key) == value for key, value in wanted.items())
    ]


# ------------------------------------------------------------ the search before the judgement


@dataclass(frozen=True)
class Search:
    """Scores of an arm at each of its settings, on search seeds.

    Args:
        arm: its name in claims.yaml.
        tasks: on which one setting is chosen for all.
        scores: by setting, such as ``("tau", 0.03)``, in ascending order: an array of runs ``[n]`` per task. Of several
            tasks they are divided by the mean of the claim's first arm at its middle setting.
        gaps: by setting, for each task the action gap in the second half of training, averaged over runs; NaN where it
            is not recorded.
    """

    arm: str
    tasks: tuple[str, ...]
    scores: Mapping[tuple[str, float], Sequence[Array]]
    gaps: Mapping[tuple[str, float], Sequence[float]]

    def mean(self, setting: tuple[str, float]) -> float:
        """The mean over tasks of the mean over seeds."""
        return float(np.mean([each.mean() for each in self.scores[setting]]))

    @property
    def chosen(self) -> tuple[str, float]:
        """The best setting; of equal ones that next to the middle one, the frame's own."""
        settings = list(self.scores)
        return max(settings, key=lambda each: (self.mean(each), -abs(settings.index(each) - len(settings) // 2)))


def searches(claim: Claim, rows: Rows) -> list[Search]:
    """The searches of ``claim``, in the order of its arms; none beyond an arm whose settings lack runs."""
    tasks = _tasks(claim)
    together = [tasks] if claim["rule"].startswith("One setting an arm, for all games") else [(each,) for each in tasks]
    found = []
    for group in together:
        plain: list[Array] | None = None
        for arm in claim["arms"]:
            runs = _search_runs(claim, rows, arm, group)
            if runs is None:
                break
            scores = {
                key: [np.array([_score(claim, row) for row in each], np.float64) for each in of]
                for key, of in runs.items()
            }
            if len(group) > 1:
                plain = plain or list(scores.values())[len(scores) // 2]
                scores = {key: relative(of, plain) for key, of in scores.items()}
            gaps = {key: [float(np.mean([_late_gap(row) for row in each])) for each in of] for key, of in runs.items()}
            found.append(Search(arm, group, scores, gaps))
    return found


def _late_gap(row: Row) -> float:
    curve = np.array(row.get("curve", {}).get("gap", ()), np.float64)  # null where nothing was logged
    late = curve[len(curve) // 2 :]
    late = late[~np.isnan(late)]
    return float(late.mean()) if len(late) else float("nan")


def _search_runs(
    claim: Claim, rows: Rows, arm: str, tasks: Sequence[str]
) -> dict[tuple[str, float], list[list[Row]]] | None:
    """The runs of each task by setting, in ascending order; None if some are missing."""
    found: dict[tuple[str, float], dict[str, list[Row]]] = {}
    for task in tasks:
        of_task = _rows_of(claim, rows.get(claim["experiment"]["search"], ()), arm, task)
        taus = {row["config"].get("regularizer.tau") for row in of_task}
        key = "regularizer.tau" if len(taus) > 1 else "algo.learning_rate"
        for row in of_task:
            setting = (key.rpartition(".")[2].replace("_", " "), float(row["config"][key]))
            found.setdefault(setting, {}).setdefault(task, []).append(row)
    counts = [len(of.get(task, ())) for of in found.values() for task in tasks]
    if len(found) != 3 or len(set(counts)) != 1 or not counts[0]:
        return None
    return {setting: [found[setting][task] for task in tasks] for setting in sorted(found)}


# ------------------------------------------------------------ claims decided by fresh seeds


def _not_run(claim: Claim, rows: Rows) -> Finding:
    experiment = claim["experiment"]
    sweep = experiment["judge"]
    if "search" in experiment and not _is_searched(claim, rows):
        sweep = experiment["search"]  # which decides the settings of the other
    done = len(rows.get(sweep, ()))
    count = f" ({done} runs done)" if done else ""
    then = "" if sweep == experiment["judge"] else ", then the chosen settings on fresh seeds"
    seconds = _total_seconds(claim, rows)
    about = "" if seconds is None else f"; fresh seeds take at least {hours(seconds)} of a core"
    return Finding(OPEN, f"`torchrl-reg launch cluster=local sweep={sweep}`{count}{then}{about}")


def _is_searched(claim: Claim, rows: Rows) -> bool:
    found = {(each.arm, task) for each in searches(claim, rows) for task in each.tasks}
    return found == set(product(claim["arms"], _tasks(claim)))


#: Earlier sweeps with about the same time per frame, for sweeps whose search has not run yet.
_SIMILAR_SWEEPS = {"answers_minatar": "dqn_minatar", "answers_mirl": "dqn_minatar", "answers_iq": "dopamine_mujoco"}


def _total_seconds(claim: Claim, rows: Rows) -> float | None:
    """CPU time of all runs behind a claim, at the speed of its search or of a similar sweep."""
    experiment, search = claim["experiment"], rows.get(claim["experiment"].get("search", ""), ())
    if "frames" not in experiment or "arms" not in claim:
        return None
    frames = len(_tasks(claim)) * len(claim["seeds"]) * sum(_frames(claim, arm) or 0 for arm in claim["arms"])
    if search:  # the fastest run: on a busy machine others take longer
        return min((row["cpu_seconds"] or row["wall_seconds"]) / row["frames"] for row in search) * frames
    known = [row for row in _study(rows, "hours") if row["sweep"] == _SIMILAR_SWEEPS.get(experiment["judge"])]
    return known[0]["hours"] * 3600 / known[0]["runs"] / known[0]["frames"] * frames if known else None


def _without_rule(claim: Claim, rows: Rows) -> Finding:
    experiment = claim["experiment"]
    how = experiment.get("command") or (f"sweep={experiment['sweep']}" if "sweep" in experiment else "")
    return Finding(OPEN, experiment.get("none", f"`{how}`" if how else ""))


def _compared(
    claim: Claim, rows: Rows, pairs: Iterable[tuple[str, str, str]]
) -> list[tuple[str, Difference, Verdict]] | None:
    """Differences of each (arm, arm, task), corrected together (Holm); None if an arm lacks seeds."""
    found = []
    for one, other, task in pairs:
        x, y = (arm_scores(claim, rows, arm, task) for arm in (one, other))
        if min(len(x), len(y)) < len(claim["seeds"]):
            return None
        found.append((f"{one} - {other} on {task}", welch(Sample.from_scores(x), Sample.from_scores(y))))
    ps = holm([each.p for _, each in found])
    return [(name, each, verdict(each, p)) for (name, each), p in zip(found, ps, strict=True)]


def _lines(found: Iterable[tuple[str, Difference, Verdict]]) -> str:
    texts = []
    for name, each, outcome in found:
        value, low, high = each.interval
        texts.append(f"{name}: {value:+.3g} [{low:+.3g}, {high:+.3g}], {outcome}")
    return "; ".join(texts)


def _by_words(found: list[tuple[str, Difference, Verdict]], shown: int, contradicted: int = 1) -> Finding:
    """Shown: ``shown`` pairs above and none below; contradicted: ``contradicted`` below and, if above 1, none above."""
    words = [outcome.word for *_, outcome in found]
    above, below = words.count("above"), words.count("below")
    word = _UNDECIDED
    if above >= shown and not below:
        word = "shown"
    elif below >= contradicted and (not above or contradicted == 1):
        word = "contradicted"
    return Finding(word, _lines(found))


def _pairs_rule(
    pairs: Callable[[Claim], list[tuple[str, str, str]]], shown: int, contradicted: int = 1
) -> Callable[[Claim, Rows], Finding]:
    def rule(claim: Claim, rows: Rows) -> Finding:
        found = _compared(claim, rows, pairs(claim))
        return _not_run(claim, rows) if found is None else _by_words(found, shown, contradicted)

    return rule


def _solved(claim: Claim, rows: Rows) -> Finding:
    """Compares the shares of seeds that solve a task in pairs, by Fisher's test with Holm's correction."""
    pairs = [
        (one, other, task)
        for task in claim["experiment"]["tasks"]
        for one, other in (("m_iqn", "rainbow"), ("rainbow", "iqn"), ("m_iqn", "iqn"))
    ]
    found = []
    for one, other, task in pairs:
        values = [arm_scores(claim, rows, arm, task) for arm in (one, other)]
        if min(map(len, values)) < len(claim["seeds"]):
            return _not_run(claim, rows)
        counts = [(int((each >= SOLVED[task]).sum()), len(each)) for each in values]
        found.append((one, other, task, counts, fisher(*counts)))
    signs = []
    texts = []
    for (one, other, task, (x, y), _), p in zip(found, holm([each[-1] for each in found]), strict=True):
        ahead = x[0] / x[1] - y[0] / y[1]
        signs.append((one, other, 0 if p >= 0.05 else 1 if ahead > 0 else -1))
        texts.append(f"{one} {x[0]}/{x[1]}, {other} {y[0]}/{y[1]} reach {SOLVED[task]:g} on {task} (p {p:.2g})")
    against = any(sign < 0 for *_, sign in signs)
    ahead = any(sign > 0 for one, other, sign in signs if (one, other) == ("m_iqn", "iqn"))
    word = "contradicted" if against else "shown" if ahead else _UNDECIDED
    means = _compared(claim, rows, [pair for pair in pairs if pair[-1] == "acrobot"])  # acrobot's return has no cap
    return Finding(word, "; ".join([*texts, *([_lines(means)] if means else [])]))


def _pqn(claim: Claim, rows: Rows) -> Finding:
    """Returns over plain PQN's."""
    scores = fresh_scores(claim, rows)
    if scores is None:
        return _not_run(claim, rows)
    found = _over_plain({arm: (of, scores["peng"]) for arm, of in scores.items() if arm != "peng"})
    word = _of_arms(word for arm, (word, _) in found.items() if arm != "corrected")  # no regularizer
    term = _compared(claim, rows, [("munchausen_corrected", "entropy_corrected", game) for game in _tasks(claim)])
    return Finding(
        word, f"IQM over plain PQN{_level(found)}: {_texts(found)}; what the term adds: {_lines(term or ())}"
    )


def _pqn_same_rate(claim: Claim, rows: Rows) -> Finding:
    """Returns over those of the same form of PQN without the regularizer, at the same learning rate."""
    experiment = {**claim["experiment"], "judge": claim["experiment"]["regularized"]}
    regularized = {**claim, "arms": list(claim["over"]), "experiment": experiment}
    plain, scores = fresh_scores(claim, rows), fresh_scores(regularized, rows)
    if plain is None or scores is None:
        return _not_run(claim if plain is None else regularized, rows)
    found = _over_plain({arm: (scores[arm], plain[of]) for arm, of in claim["over"].items()})
    return Finding(
        _of_arms(word for word, _ in found.values()), f"IQM over PQN at the same rate{_level(found)}: {_texts(found)}"
    )


def family_level(arms: int) -> float:
    """That of the intervals of several arms, corrected for their number."""
    return 1 - 0.05 / arms


def _over_plain(pairs: Mapping[str, tuple[list[Array], list[Array]]]) -> dict[str, tuple[str, Estimate]]:
    """Of each arm the word, and the IQM of its scores over the mean of a plain arm's in the same game.

    Shown: its interval is above 1 and no game is below by Welch's test, with Holm's correction over the arms. Of n arms
    the intervals are those of 1 - .05 / n: in simulations one of them is above 1 by chance in about 5% of cases.
    """
    below: set[str] = set()
    for place in range(len(next(iter(pairs.values()))[0])):
        found = [welch(*(Sample.from_scores(each[place]) for each in pair)) for pair in pairs.values()]
        ps = holm([each.p for each in found])
        below |= {arm for arm, each, p in zip(pairs, found, ps, strict=True) if p < 0.05 and each.value < 0}
    estimates = {arm: relative_iqm(*pair, level=family_level(len(pairs))) for arm, pair in pairs.items()}
    return {
        arm: ("shown" if of.low > 1 and arm not in below else "contradicted" if of.high < 1 else "undecided", of)
        for arm, of in estimates.items()
    }


def _of_arms(words: Iterable[str]) -> str:
    found = list(words)
    return "shown" if "shown" in found else "contradicted" if set(found) == {"contradicted"} else _UNDECIDED


def _level(found: Sized) -> str:
    return f" (intervals of {family_level(len(found)):.1%})"


def _texts(found: Mapping[str, tuple[str, Estimate]]) -> str:
    return "; ".join(f"{arm} {of.value:.2f} [{of.low:.2f}, {of.high:.2f}], {word}" for arm, (word, of) in found.items())


def _tau_over_alpha(claim: Claim, rows: Rows) -> Finding:
    """Shown if the smallest range over tau exceeds the largest over alpha in 95% of bootstrap draws over seeds."""
    cells: dict[tuple[float, float], list[float]] = {}
    for row in rows.get(claim["experiment"]["judge"], ()):
        if row["seed"] in claim["seeds"]:
            place = (float(row["config"]["algo.tau"]), float(row["config"]["algo.alpha"]))
            cells.setdefault(place, []).append(row["scores"]["greedy"][0])
    taus, alphas = (sorted({place[i] for place in cells}) for i in (0, 1))
    if len(cells) < 4 or len(cells) < len(taus) * len(alphas) or min(map(len, cells.values())) < len(claim["seeds"]):
        return _not_run(claim, rows)
    random, draws = np.random.default_rng(0), 2_000
    means = np.empty((len(taus), len(alphas), draws + 1))
    for (tau, alpha), values in cells.items():
        picks = random.integers(len(values), size=(draws, len(values)))
        place = taus.index(tau), alphas.index(alpha)
        means[place] = [np.mean(values), *np.array(values)[picks].mean(1)]
    ahead = np.ptp(means, axis=0).min(0) - np.ptp(means, axis=1).max(0)
    share = float((ahead[1:] > 0).mean())
    word = "shown" if ahead[0] > 0 and share >= 0.95 else _UNDECIDED
    return Finding(word, f"range over tau minus range over alpha {ahead[0]:+.3g}, above 0 in {share:.0%} of draws")


# ------------------------------------------------------------ claims decided by exact tables and studies


def _study(rows: Rows, name: str) -> list[Row]:
    return [row for each in rows.values() for row in each if row.get("study") == name]


def _exact(claim: Claim, rows: Rows) -> Finding:
    found = [row for row in _study(rows, "exact") if row["claim"] == claim["id"]]
    at = [f"{row['measure']} {row['value']:.3g}{_at(row)}" for row in found]
    values = _ByKey({(row["measure"], row.get("at")): row["value"] for row in found})
    if not found:
        return Finding(OPEN, "`python -m recipes.studies.exact recipes/results/exact.jsonl`")
    if claim["id"] == "munchausen_is_kl":
        holds = max(values.values()) < 1e-10
    elif claim["id"] == "soft_q_iteration":
        holds = values["largest ratio of distances", None] <= 0.9 and min(values.values()) > -1e-9
    else:
        entropies = [values["entropy over ln A", scale] for scale in (0.1, 1.0, 10.0)]
        holds = (
            entropies[0] > entropies[1] + 0.1 > entropies[2] + 0.2
            and values["VIREL's entropy in the end", None] < 0.01
            and all(values[BET, tau] > 0.5 for tau in (0.2, 0.5))
        )
    return Finding("shown" if holds else "contradicted", f"in tables: {'; '.join(at)}")


def _averaged_errors(claim: Claim, rows: Rows) -> Finding:
    found = [row for row in _study(rows, "theory_errors") if row["errors"] == "independent"]
    if not found:
        return _without_rule(claim, rows)
    losses = ", ".join(f"{row['method']} {row['mean']:.3g}" for row in found)
    problems = found[0]["problems"]
    return Finding(_UNDECIDED, f"loss under independent errors, mean of {problems} problems, records lost: {losses}")


def _at(row: Row) -> str:
    claimed = f", claimed {row['claimed']:.3g}" if "claimed" in row else ""
    return f" (at {row['at']:g}{claimed})" if "at" in row else f" ({claimed[2:]})" if claimed else ""


def _gap(claim: Claim, rows: Rows) -> Finding:
    found = [row for row in _study(rows, "exact") if row["claim"] == claim["id"]]
    if not found:
        return Finding(OPEN, "`python -m recipes.studies.exact recipes/results/exact.jsonl`")
    holds = all(abs(row["value"] / row["claimed"] - 1) < 1e-3 for row in found)
    texts = [f"alpha {row['at']:g}: {row['value']:.3g}, claimed {row['claimed']:.3g}" for row in found]
    return Finding("shown" if holds else "contradicted", f"in tables the factor is 1 / (1 - alpha): {'; '.join(texts)}")


def interval_difference(one: Row, other: Row) -> Difference:
    """Welch's difference of two means known only by their 95% intervals, each of 20 values or more."""
    samples = [
        Sample(row["mean"], (row["high"] - row["low"]) / 2 / 1.96 * float(np.sqrt(row["seeds"])), row["seeds"])
        for row in (one, other)
    ]
    return welch(*samples)


def _grids(claim: Claim, rows: Rows) -> Finding:
    rewards = [row for row in _study(rows, "mirl_grid") if row["measure"] == "reward per step"]
    found = _ByKey({(row["world"], row["method"]): row for row in rewards})
    if not found:
        return _without_rule(claim, rows)
    order = ("MIRL", "SQL_m", "SQL", "Q-learning")
    worlds = list(dict.fromkeys(world for world, _ in found))
    pairs = [(world, one, other) for world in worlds for one, other in pairwise(order)]
    each = [interval_difference(found[world, one], found[world, other]) for world, one, other in pairs]
    verdicts = [verdict(a, p) for a, p in zip(each, holm([a.p for a in each]), strict=True)]
    texts = [
        f"{one} - {other} on {world} {a.value:+.3f}, {v.word}"
        for (world, one, other), a, v in zip(pairs, each, verdicts, strict=True)
    ]
    words = [v.word for v in verdicts]
    word = "contradicted" if "below" in words else "shown" if set(words) == {"above"} else _UNDECIDED
    return Finding(word, "reward per step while learning: " + "; ".join(texts))


def _trees(claim: Claim, rows: Rows) -> Finding:
    kinds = _study(rows, "ments_trees")
    if not kinds:
        return _without_rule(claim, rows)
    texts, ahead = [], {}
    for measure in ("value error", "regret"):
        for simulations in (100, 2000):
            found = [row for row in kinds if row["measure"] == measure and row["simulations"] == simulations]
            ps = holm([_paired_p(row) for row in found])
            better = sum(p < 0.05 and row["mean"] < 0 for p, row in zip(ps, found, strict=True))
            worse = sum(p < 0.05 and row["mean"] > 0 for p, row in zip(ps, found, strict=True))
            ahead[measure, simulations] = (better, worse)
            texts.append(
                f"{measure} at {simulations:,} simulations: better on {better} of {len(found)}, worse on {worse}"
            )
    both = all(better for better, _ in ahead.values()) and not any(worse for _, worse in ahead.values())
    return Finding("shown" if both else _UNDECIDED, "kinds of trees: " + "; ".join(texts))


def _paired_p(row: Row) -> float:
    """The p-value of a mean of paired differences over 100 trees, from its 95% interval."""
    error = (row["high"] - row["low"]) / 2 / 1.96
    return Difference(row["mean"], error, row["seeds"] - 1, float("nan")).p


def _stein(claim: Claim, rows: Rows) -> Finding:
    found = [row for row in _study(rows, "multigoal") if "low" in row]
    if not found:
        return _without_rule(claim, rows)
    (row,) = found
    share = f"{row['low']:.0%} to {row['high']:.0%} of {row['episodes']} episodes at each of four goals"
    rest = "composition exact in tables; latent policies not compared"
    return Finding(_UNDECIDED, f"modes: {share}, {row['seeds']} seeds; {rest}")


def _gpu(claim: Claim, rows: Rows) -> Finding:
    sweep = claim["experiment"]["sweep"]
    found = _study(rows, "ments_minatar")
    small = ", ".join(f"{row['method']} {row['mean']:g}" for row in found)
    return Finding("needs a GPU", f"`sweep={sweep}`" + (f"; MinAtar Breakout, one network: {small}" if small else ""))


def _virel(claim: Claim, rows: Rows) -> Finding:
    experiment, task = claim["experiment"], "mujoco/halfcheetah"
    scores = {
        method: np.array(
            [r["scores"]["greedy"][0] for r in rows.get(sweep, ()) if (r["method"], r["env"]) == (method, task)]
        )
        for method, sweep in (("virel", experiment["sweep"]), ("sac", experiment["judge"]))
    }
    if min(map(len, scores.values())) < 3:
        return Finding(OPEN, f"`torchrl-reg launch cluster=local sweep={experiment['sweep']}`")
    found = welch(*(Sample.from_scores(each) for each in scores.values()))
    outcome = verdict(found)
    word = {"above": "shown", "below": "contradicted"}.get(outcome.word, _UNDECIDED)
    return Finding(word, _lines([("virel - sac on halfcheetah", found, outcome)]))


def solved_share(values: Array, task: str) -> Estimate:
    """The share of seeds that solve ``task``, with its interval."""
    return share_estimate(int((values >= SOLVED[task]).sum()), len(values))


_RULES: dict[str, Callable[[Claim, Rows], Finding]] = {
    "m_dqn_over_dqn": _pairs_rule(lambda c: [("m_dqn", "dqn", game) for game in c["experiment"]["games"]], 2, 2),
    "m_iqn_over_rainbow_over_iqn": _solved,
    "munchausen_is_kl": _exact,
    "errors_average_out": _averaged_errors,
    "action_gap": _gap,
    "pqn_regularized": _pqn,
    "pqn_same_rate": _pqn_same_rate,
    "mirl_grids": _grids,
    "mirl_deep": _pairs_rule(lambda c: [(a, b, c["experiment"]["games"][0]) for a, b in pairwise(c["arms"])], 3),
    "iq_against_sac": _pairs_rule(
        lambda c: [(a, b, t) for t in c["experiment"]["tasks"] for a, b in (("iq", "sac"), ("m_iq", "iq"))], 4
    ),
    "multicategorical": _pairs_rule(lambda c: [("iq multicategorical", "iq gaussian", "hopper")], 1),
    "tau_over_alpha": _tau_over_alpha,
    "soft_q_iteration": _exact,
    "stein_sampler": _stein,
    "ments_over_uct": _trees,
    "ments_games": _gpu,
    "virel_sac": _virel,
    "reward_scale": _exact,
}
