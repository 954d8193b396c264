"""Groups runs into methods: the seeds of each method, and the shortest labels that distinguish methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torchrl_reg.lab.analysis.runs import RunRecord, is_number
from torchrl_reg.lab.documents import hint
from torchrl_reg.lab.errors import UserError

K = TypeVar("K", bound=Hashable)
_ABSENT = "absent"
_COEFFICIENTS = ("algo.", "regularizer.", "shaping.", "head.")
_ENV = frozenset({"env.name", "env.game"})


@dataclass(frozen=True)
class Group:
    """The seeds of one method on one environment: runs of one recipe with equal settings.

    Args:
        method: its label: the recipe and the settings that distinguish it from other methods.
        recipe, env: recipe and environment of its runs.
        settings: values of all settings in which runs of the recipe differ on some environment; the label names enough
            of them to be unique.
        runs: its runs, sorted by seed, each seed once.
    """

    method: str
    recipe: str
    env: str
    settings: dict[str, Any]
    runs: tuple[RunRecord, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in ascending order."""
        return tuple(run.seed for run in self.runs)

    @property
    def commits(self) -> tuple[str, ...]:
        """The distinct commits of its runs, shortened; ``+`` marks uncommitted changes."""
        return tuple(dict.fromkeys(commit for run in self.runs for commit in run.short_commits))


def group_runs(runs: Iterable[RunRecord], by: Sequence[str] | None = None) -> list[Group]:
    """The methods in ``runs``: one group per recipe, environment and set of settings.

    A recipe is named by its stem (``m_dqn``), or by its path if two files share a stem (``recipes/m_dqn``).

    The label is the recipe and the fewest settings that distinguish its configs. A label names only settings that vary
    on at least one environment: presets of environments do not make methods differ, so a method has one label on all
    environments and can be averaged over them.

    Args:
        runs: runs of any recipes and environments.
        by: settings of the labels (``["algo.tau"]``); by default the fewest possible.

    Returns:
        Groups sorted by environment, recipe and values of the settings.

    Raises:
        UserError: ``by`` names no setting; or runs that labels cannot distinguish: seeds beside each other (``seed=0``,
            ``seed=1``) with unequal settings, settings missing in ``by``, or one seed of one method twice.
    """
    runs = list(runs)
    _refuse_unknown(by or (), runs)
    siblings = [run for run in runs if run.path.name.startswith("seed=")]
    _refuse_different(siblings, lambda run: run.path.parent, (), "seeds beside each other", "have equal settings")
    scripts = Counter(recipe for recipe, _ in {(run.recipe, run.script) for run in runs})
    named = _grouped(runs, lambda run: run.script.removesuffix(".py") if scripts[run.recipe] > 1 else run.recipe)
    groups = [group for recipe in sorted(named) for group in _groups_of_recipe(recipe, named[recipe], by)]
    return sorted(groups, key=lambda group: group.env)  # stable: recipes and settings stay in order


def _grouped(runs: Iterable[RunRecord], key: Callable[[RunRecord], K]) -> dict[K, list[RunRecord]]:
    found: dict[K, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def without_settings(runs: Sequence[RunRecord], ignored: Sequence[str]) -> list[RunRecord]:
    """``runs`` without the settings ``ignored``, so that runs that differ only in these are one method.

    Raises:
        UserError: a name that is not a setting of the runs.
    """
    _refuse_unknown(ignored, runs, "ignore")
    return [
        replace(run, config={key: value for key, value in run.config.items() if key not in ignored}) for run in runs
    ]


def without_repetitions(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """``runs`` without duplicates (same recipe, seed and settings), and a sentence about each duplicate.

    ``iq.py`` and ``iq.py policy=multicategorical`` are one run in two folders. A finished run is kept, of several
    one that was evaluated, else the longer one.
    """
    found: dict[Hashable, RunRecord] = {}
    sentences = []
    for run in sorted(runs, key=_preference):
        settings = tuple(sorted((key, _comparable(value)) for key, value in run.config.items()))
        kept = found.setdefault((run.script or run.recipe, run.env, run.seed, repr(settings)), run)
        if kept is not run:
            sentences.append(f"{run.path} is the same run as {kept.path}, which is used alone")
    kept_paths = {run.path for run in found.values()}
    return [run for run in runs if run.path in kept_paths], sentences


def _preference(run: RunRecord) -> tuple[bool, bool, int, Path]:
    frames = -run.frames if run.done is None else 0
    return run.done is None, not len(run.evaluations()[0]), frames, run.path  # a damaged record has no evaluation


def _groups_of_recipe(recipe: str, runs: list[RunRecord], by: Sequence[str] | None) -> list[Group]:
    varied = varied_settings(runs)
    if by is None:
        named = _label_settings(varied, runs)
    else:
        rule = f"differ in {', '.join(by) or 'their seed'} alone"
        for env, there in _grouped(runs, lambda run: run.env).items() if varied else ():
            who = f"runs of {recipe} on {env}"
            _refuse_different(there, lambda run: _values(run, by), varied, who, rule)
        named = [key for key in by if key in varied]
    found = _grouped(runs, lambda run: (run.env, *_values(run, varied)))
    groups = []
    for key in sorted(found, key=lambda key: [_sortable(value) for value in key]):
        members = sorted(found[key], key=lambda run: (run.seed, run.path))
        label = _label(recipe, named, members[0])
        for one, other in pairwise(members):
            if one.seed == other.seed:
                raise UserError(
                    f"each seed of {label} on {one.env} must have one run, got seed {one.seed} in {one.path} and in "
                    f"{other.path}."
                )
        settings = {name: members[0].config.get(name, _ABSENT) for name in varied}
        groups.append(Group(label, recipe, members[0].env, settings, tuple(members)))
    return groups


def varied_settings(runs: Sequence[RunRecord]) -> list[str]:
    """Settings that vary within an environment, in the order of the config."""
    varied = {key for _, _, keys in _differing(runs, lambda run: run.env) for key in keys} - _ENV
    return [key for key in dict.fromkeys(key for run in runs for key in run.config) if key in varied]


def _label_settings(varied: list[str], runs: list[RunRecord]) -> list[str]:
    """A small subset of the ``varied`` settings that splits ``runs`` as finely as all of them (greedy, then pruned)."""

    def parts(keys: Sequence[str]) -> int:
        return len({_values(run, keys) for run in runs})

    candidates = sorted(varied, key=_label_rank)
    named: list[str] = []
    while parts(named) < parts(varied):
        named.append(max(candidates, key=lambda key: parts([*named, key])))
    for key in reversed(named.copy()):
        rest = [other for other in named if other != key]
        if parts(rest) == parts(varied):
            named = rest
    return [key for key in varied if key in named]


def _label_rank(key: str) -> tuple[int, int]:
    """The rank of a setting in labels: kinds of policy or net first, then coefficients, then lengths."""
    kind = 0 if key.endswith(".name") else 1 if key.startswith(_COEFFICIENTS) else 2
    return (key.endswith(("_frames", "_episodes")), kind)


def _label(recipe: str, keys: Sequence[str], run: RunRecord) -> str:
    return " ".join([recipe, *(f"{short_name(key, keys)}={shown(run.config.get(key, _ABSENT))}" for key in keys)])


def short_name(key: str, keys: Iterable[str]) -> str:
    """``key`` without its section, unless another of ``keys`` has the same last part.

    >>> short_name("algo.tau", ["algo.tau", "net.num_cells"]), short_name("policy.name", ["policy.name"])
    ('tau', 'policy')
    >>> short_name("net.num_cells", ["net.num_cells", "policy.num_cells"])
    'net.num_cells'
    """
    section, _, last = key.rpartition(".")
    if last in ("name", "_target_"):  # the kind (policy.name) or the user's class
        return section
    return key if any(other != key and other.rpartition(".")[2] == last for other in keys) else last


def shown(value: object) -> str:
    """The value of a setting as typed on the command line.

    >>> shown(0.03), shown(60000), shown(False), shown(None), shown([128, 128])
    ('0.03', '60000', 'false', 'null', '[128,128]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{','.join(shown(each) for each in value)}]"
    return str(value)


def _values(run: RunRecord, keys: Iterable[str]) -> tuple[Hashable, ...]:
    # 1 and 1.0 are equal, 1 and True are not.
    return tuple(_comparable(run.config.get(key, _ABSENT)) for key in keys)


def _comparable(value: object) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    # As text: None, empty sections, dates, and NaN, which does not equal itself.
    return value if isinstance(value, str) or (is_number(value) and value == value) else str(value)


def _sortable(value: object) -> tuple[bool, float, str]:
    if isinstance(value, int | float):
        return (False, float(value), "")
    return (True, 0.0, str(value))


def _differing(
    runs: Iterable[RunRecord], alike: Callable[[RunRecord], Hashable]
) -> Iterator[tuple[RunRecord, RunRecord, list[str]]]:
    """Runs that differ from the first run with the same ``alike``: that run, the run, the settings that differ."""
    first: dict[Hashable, RunRecord] = {}
    for run in runs:
        one = first.setdefault(alike(run), run)
        if run.config != one.config:  # faster than comparing each setting
            keys = dict.fromkeys([*one.config, *run.config])
            yield one, run, [key for key in keys if _values(one, [key]) != _values(run, [key])]


def _refuse_different(
    runs: Iterable[RunRecord], alike: Callable[[RunRecord], Hashable], among: Iterable[str], who: str, rule: str
) -> None:
    """Raises ``UserError`` for runs with the same ``alike`` whose settings ``among`` differ (empty: all settings)."""
    among = set(among)
    for one, run, different in _differing(runs, alike):
        if keys := [key for key in different if key in among or not among]:
            there, here = (shown(each.config.get(keys[0], _ABSENT)) for each in (one, run))
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            example = f"{keys[0]} ({there} in {one.path}, {here} in {run.path}){more}"
            raise UserError(f"{who} must {rule}, got different {example}.")


def _refuse_unknown(by: Iterable[str], runs: Iterable[RunRecord], name: str = "by") -> None:
    known = sorted({key for run in runs for key in run.config})
    for key in by:
        if key not in known:
            raise UserError(f"{name} must name a setting of the runs, got {key!r}.{hint(key, known)}")
