"""Compares our scores with published ones of the same protocol, and lists the differences of other protocols."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.groups import Group, short_name, shown
from torchrl_reg.lab.analysis.inference import Difference, Sample, Verdict, verdict, welch
from torchrl_reg.lab.analysis.numbers import amount, counted
from torchrl_reg.lab.analysis.published import published_file
from torchrl_reg.lab.analysis.runs import RunRecord, is_number
from torchrl_reg.lab.analysis.scores import EVALUATION, Scores, require_scores, scores_of
from torchrl_reg.lab.analysis.statistics import Estimate, stratified_estimate
from torchrl_reg.lab.analysis.tables import Row, Table, frames_text
from torchrl_reg.lab.documents import flat
from torchrl_reg.lab.errors import UserError

#: Display names of metrics.
_METRICS = {
    EVALUATION: "greedy evaluation",
    "return_sampled_mean": "sampled evaluation",
    "return_last_100": "last 100 training episodes",
    "return_mean": "training episodes since the row before",
}
_LIMIT = "env.max_episode_frames"
#: Defaults of options absent from a published agent's settings, and from records older than the option.
_DEFAULTS: dict[str, object] = {
    "algo.eps_decay": "linear",
    "algo.eps_off_frames": None,
    "algo.random_until_learning": False,
    "algo.delay_value": True,
    "algo.reward_scale": 1.0,
    "algo.max_grad_norm": None,
    "algo.priority_exponent": 0.0,
    "net.layer_norm": "none",
    "net.dueling": "none",
    "net.noise_sigma": 0.0,
    "net.image_divisor": 1.0,
    "net.input_low": [],
    "algo.below": None,
}
_NOTE = (
    "In brackets: 95% interval over seeds by Student's t, and of the gap, ours minus published, by Welch's. A "
    "published number stands here where the protocol is the same. Equal: both one-sided tests pass within the margin "
    "that was written beside the published number; where that would pass too seldom, it is not asked for."
)


@dataclass(frozen=True)
class Published:
    """A published score and its protocol.

    Args:
        name: name of the implementation, ``"CleanRL dqn.py"``.
        source: where it was published.
        method, env: our names, ``"dqn"`` and ``"cartpole"``.
        frames: environment frames at the score, counted as in our runs.
        mean: mean over ``seeds``, in the unit of the returns.
        spread, kind: the number after ±, and its kind (``"sd"`` over seeds); None if none was published.
        column: the averaged return, a column of evaluation or training rows.
        every: frames between two training rows, if the column depends on it.
        margin, power: margin of equality, and the probability that equal means pass; see ``data/published.yaml``.
        settings: settings on which the score depends, flat.
        note: differences that no setting expresses.
    """

    name: str
    source: str
    method: str
    env: str
    frames: int
    mean: float
    seeds: int
    column: str
    settings: Mapping[str, object]
    spread: float | None = None
    kind: str = ""
    every: int | None = None
    margin: float | None = None
    power: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:g}"
        kind = f"{self.kind}, " if self.kind and spread else ""
        return f"{self.name}: {self.mean:g}{spread} ({kind}{counted(self.seeds, 'seed')})"


@dataclass(frozen=True)
class Gap:
    """Our scores and a published one.

    Args:
        scores: our scores.
        column: their metric.
        published: the published score; None without one.
        differs: differences of the protocols, ``"eps_end 0.1, not 0.05"``; empty if they are the same.
    """

    scores: Scores
    column: str
    published: Published | None
    differs: tuple[str, ...] = ()

    @cached_property
    def ours(self) -> Estimate:
        """Our mean over seeds with its 95% interval (Student's t).

        Raises:
            UserError: no run has a score.
        """
        return stratified_estimate([self.scores.values], statistics.mean)

    @cached_property
    def difference(self) -> Difference | None:
        """Our mean minus the published one; None if the protocols differ."""
        if self.published is None or self.differs:
            return None
        spread = self.published.spread
        theirs = Sample(self.published.mean, math.nan if spread is None else spread, self.published.seeds)
        return welch(Sample.from_scores(self.scores.values), theirs)

    @property
    def verdict(self) -> Verdict | None:
        """Above, below, equal within the margin or undecided, at 5%; None if the protocols differ.

        Equality is not tested if equal means would pass in fewer than half of all cases.
        """
        if self.published is None or self.difference is None:
            return None
        return verdict(self.difference, margin=self.published.margin if self.published.power >= 0.5 else None)

    def __str__(self) -> str:
        if self.differs:
            return f"differs: {'; '.join(self.differs)}"
        if self.difference is None:
            return ""
        value, low, high = self.difference.interval
        interval = "" if math.isnan(low) else f" [{low:+,.4g}, {high:+,.4g}]"
        return f"{value:+,.4g}{interval}, {self.verdict}"


@cache
def published_scores() -> tuple[Published, ...]:
    """The published scores with a protocol, in the order of ``data/published.yaml``."""
    sources = published_file()["sources"]
    rows = [row for row in published_file()["scores"] if "settings" in _source(sources, row["by"])]
    return tuple(_published(row, _source(sources, row["by"])) for row in rows)


def _source(sources: Mapping[str, Any], name: str) -> dict[str, Any]:
    source = sources[name]
    base = _source(sources, source["like"]) if "like" in source else {}
    settings = base.get("settings", {}) | flat(source.get("settings", {}))
    return {**base, **source} | ({"settings": settings} if settings else {})


def _published(row: Mapping[str, Any], source: Mapping[str, Any]) -> Published:
    settings = source["settings"] | flat(source.get("only", {}).get(row["task"], {}))
    return Published(
        name=row["by"],
        source=source["source"],
        method=row["method"],
        env=row["task"],
        frames=row["frames"],
        mean=row["mean"],
        seeds=row["seeds"],
        column=row["column"],
        settings=MappingProxyType(settings),
        spread=row.get("spread"),
        kind=row.get("kind", ""),
        every=row.get("every"),
        margin=row.get("margin"),
        power=row.get("power", 0.0),
        note=source.get("note", ""),
    )


def gap(record: Group, published: Published, column: str | None = None, *, unfinished: bool = False) -> Gap:
    """Our final score and a published one.

    Args:
        record: our runs of the method.
        published: one of :func:`published_scores`.
        column: the metric; by default the published one, or the greedy evaluation if the runs lack it.
        unfinished: includes unfinished runs.
    """
    column = column or _column_of(record, published.column)
    scores = scores_of(record, "final", column, unfinished=unfinished)
    return Gap(scores, column, published, _differences(record.runs[0], published, column, scores.frames))


def _column_of(record: Group, column: str) -> str:
    """``column`` if the record has it, else the greedy evaluation."""
    return column if any(len(run.evaluations(column)[0]) for run in record.runs) else EVALUATION


def _differences(run: RunRecord, published: Published, column: str, frames: Sequence[int]) -> tuple[str, ...]:
    """Differences of the protocols: method, environment, metric, frames, frames between rows, settings."""
    pairs = [
        ("method", run.recipe, published.method),
        ("environment", run.env, published.env),
        ("metric", _METRICS.get(column, column), _METRICS.get(published.column, published.column)),
    ]
    # To three digits: the last batch may end past a round number.
    pairs += [("frames", each, amount(published.frames)) for each in dict.fromkeys(map(amount, frames))]
    if column == published.column and published.every is not None:
        written = np.diff(run.evaluated_frames(column)[-2:], prepend=0)[-1:].tolist()
        pairs += [("frames between rows", str(each), str(published.every)) for each in written]
    compared = {**published.settings, **_DEFAULTS, **published.settings}  # in the order of the published settings
    for key, theirs in compared.items():
        value = run.config.get(key, "not recorded" if key in published.settings else theirs)
        if key == _LIMIT and theirs is None and is_number(value) and value >= max(frames, default=0):
            value = None
        pairs.append((short_name(key, compared), shown(value), shown(theirs)))
    return tuple(f"{name} {ours}, not {theirs}" for name, ours, theirs in pairs if ours != theirs)


def gaps(groups: Sequence[Group], column: str | None = None, *, unfinished: bool = False) -> list[Gap]:
    """The :func:`gap` of each method to each of its sources, or one without a published score.

    If a source has scores at several lengths, the one with the protocol nearest to ours.

    Raises:
        UserError: no method has a published score, or no run has a score.
    """
    found = [each for group in groups for each in _gaps(group, column, unfinished)]
    if all(each.published is None for each in found):
        known = ", ".join(dict.fromkeys(f"{each.method} on {each.env}" for each in published_scores()))
        names = ", ".join(f"{group.method} on {group.env}" for group in groups)
        raise UserError(f"results must hold a method with a published score ({known}), got {names}.")
    require_scores([each.scores for each in found])
    return found


def _gaps(group: Group, column: str | None, unfinished: bool) -> list[Gap]:
    known = [each for each in published_scores() if each.env == group.env]
    found: dict[str, list[Gap]] = {}
    for each in known:
        if each.method == group.runs[0].recipe:
            found.setdefault(each.name, []).append(gap(group, each, column, unfinished=unfinished))
    if found:
        return [min(lengths, key=_distance) for lengths in found.values()]
    metric = column or (_column_of(group, known[0].column) if known else EVALUATION)
    return [Gap(scores_of(group, "final", metric, unfinished=unfinished), metric, None)]


def _distance(each: Gap) -> tuple[int, int]:
    """The number of differences, then the difference in frames."""
    theirs = 0 if each.published is None else each.published.frames
    return len(each.differs), max((abs(frames - theirs) for frames in each.scores.frames), default=0)


def protocol_table(found: Sequence[Gap]) -> Table:
    """A row for each of ``found`` with a score of ours; published numbers only if the protocols are the same."""
    sources = {each.published.name: each.published for each in found if each.published is not None}
    notes = [f"{name}: {each.source}{each.note and '; '}{each.note}." for name, each in sources.items()]
    rows = tuple(_row(each) for each in found if len(each.scores.values))
    return Table("published and ours", rows, ("published", "metric", "ours", "gap"), (_NOTE, *notes))


def _row(each: Gap) -> Row:
    published, group = each.published, each.scores.group
    words = {"metric": _METRICS.get(each.column, each.column), "gap": str(each)}
    numbers: dict[str, Estimate | float] = {"ours": each.ours.value if each.ours.is_flat else each.ours}
    if published is not None:
        words["published"] = published.name if each.differs else str(published)
    if published is not None and not each.differs:
        numbers["published mean"] = published.mean
        numbers |= {} if published.spread is None else {f"published {published.kind}": published.spread}
    frames = frames_text(each.scores.frames)
    return Row(group.env, group.method, len(each.scores.values), frames, ", ".join(group.commits), numbers, words)
