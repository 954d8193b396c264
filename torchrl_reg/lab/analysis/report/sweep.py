"""What a report is about: the runs below a folder, the sweep they belong to, and those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torchrl_reg.lab.analysis.documents import read_yaml
from torchrl_reg.lab.analysis.groups import Group, group_runs, without_repetitions, without_settings
from torchrl_reg.lab.analysis.runs import RunRecord, find_runs
from torchrl_reg.lab.analysis.scores import Scores, scores_of
from torchrl_reg.lab.analysis.sweeps import failure, marked, not_begun
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import is_done

_PREFERRED = ("return_greedy_mean", "return_sampled_mean")


@dataclass(frozen=True)
class Sweep:
    """Args:
    folder: what was asked about.
    name, question: of ``sweep.yaml``; without one the folder's name, and nothing.
    plan: the rest of ``sweep.yaml``.
    groups: methods on environments, with their runs.
    failures: by path, relative to the sweep, what was written beside the run: see :func:`failure`.
    column: the evaluation that is the score.
    not_begun: planned runs without a folder, relative to the sweep, failed ones among them.
    skipped: sentences on folders that look like runs and cannot be read.
    """

    folder: Path
    name: str
    question: str
    plan: dict[str, Any]
    groups: tuple[Group, ...]
    failures: dict[str, dict[str, str]]
    column: str
    not_begun: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def waiting(self) -> int:
        """How many runs have not begun and did not fail either."""
        return len(set(self.not_begun) - set(self.failures))

    @property
    def runs(self) -> list[RunRecord]:
        """Of all groups."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def scores(self) -> list[Scores]:
        """The last evaluations of the finished runs of every group, where they are finite numbers."""
        return [scores_of(group, "final", self.column) for group in self.groups]

    @cached_property
    def methods(self) -> list[str]:
        """Every method once, by recipe and settings; its place is its colour."""
        return list(dict.fromkeys(group.method for group in sorted(self.groups, key=lambda group: group.recipe)))

    @cached_property
    def envs(self) -> list[str]:
        """Every environment once."""
        return list(dict.fromkeys(group.env for group in self.groups))

    @property
    def commits(self) -> list[str]:
        """Every commit once, as :attr:`RunRecord.short_commits` shows them."""
        return list(dict.fromkeys(commit for run in self.runs for commit in run.short_commits))

    def of_env(self, env: str) -> list[Group]:
        """The groups on ``env``."""
        return [group for group in self.groups if group.env == env]

    def shown_path(self, run: RunRecord) -> str:
        """A run's folder, relative to the sweep's."""
        return _relative(run.path, self.folder)

    def in_state(self, state: str) -> list[RunRecord]:
        """The runs whose :meth:`state` is this."""
        return [run for run in self.runs if self.state(run) == state]

    def state(self, run: RunRecord) -> Literal["done", "failed", "unfinished"]:
        """State of a run; a run that was interrupted cannot be told from one still going on."""
        if run.done is not None:
            return "done"
        return "failed" if self.shown_path(run) in self.failures else "unfinished"


def read_sweep(folder: Path, *, column: str | None = None, ignore: Sequence[str] = ()) -> Sweep:
    """The sweep in ``folder``.

    Args:
        folder: ``results/NAME``, or any folder of runs.
        ignore: settings that make no difference between methods.
        column: the evaluation to score by; by default ``return_greedy_mean``, else the first there is.

    Raises:
        UserError: no such folder, nothing in it, runs that cannot be told apart, or no evaluation named ``column``.
    """
    skipped: list[str] = []
    runs = find_runs(folder, skipped=skipped, training=True)
    runs, repeated = without_repetitions(without_settings(runs, ignore) if ignore else runs)
    skipped += [f"{sentence}." for sentence in repeated]
    said = {run: failure(run) for run in sorted(marked(folder)) if not is_done(run)}  # or run again
    failures = {_relative(run, folder): words for run, words in said.items() if words is not None}
    unbegun = {_relative(path, folder) for path in not_begun(folder)}
    unbegun |= set(failures) - {_relative(run.path, folder) for run in runs}
    if not runs and not unbegun:
        raise UserError(f"FOLDER must hold run folders, got {folder} with none.")
    plan = _plan(folder)
    name, question = str(plan.pop("name", "") or folder.resolve().name), str(plan.pop("question", "") or "")
    groups = tuple(group_runs(runs))
    unread = (tuple(sorted(unbegun)), tuple(skipped))
    return Sweep(folder, name, question.strip(), plan, groups, failures, _column(runs, column), *unread)


def _column(runs: list[RunRecord], asked: str | None) -> str:
    found = sorted({name for run in runs for name in run.names("eval")})
    found = [key for key in found if key.startswith("return_") and key.endswith("_mean")]
    if asked is not None and asked not in found:
        raise UserError(f"--column must be an evaluation of the runs, got {asked!r}; they have {found or 'none'}.")
    return asked or next((name for name in (*_PREFERRED, *found) if name in found), _PREFERRED[0])


def _plan(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.yaml"
    loaded = read_yaml(path) if path.exists() else {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold name, question, recipe, grid and seeds, got {type(loaded).__name__}.")
    return loaded


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else path.name
