"""The sweep of a report: its plan, runs and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torchrl_reg.lab.analysis.find import find_runs
from torchrl_reg.lab.analysis.groups import Group, group_runs, without_repetitions, without_settings
from torchrl_reg.lab.analysis.runs import RunRecord
from torchrl_reg.lab.analysis.scores import Scores, scores_of
from torchrl_reg.lab.analysis.sweeps import failure, marked, not_begun
from torchrl_reg.lab.documents import read_yaml
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import is_done

_PREFERRED = ("return_greedy_mean", "return_sampled_mean")


@dataclass(frozen=True)
class Sweep:
    """A sweep, or any folder of runs.

    Args:
        folder: the folder.
        name, question: from ``sweep.yaml``; by default the folder's name, and an empty string.
        plan: the rest of ``sweep.yaml``.
        groups: methods on environments, with their runs.
        failures: facts of failed runs (:func:`failure`), by path relative to the folder.
        column: the evaluation to score by.
        not_begun: paths of planned runs without a folder, failed ones included.
        skipped: sentences on run folders that cannot be read.
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
        """The number of runs that have neither begun nor failed."""
        return len(set(self.not_begun) - set(self.failures))

    @property
    def runs(self) -> list[RunRecord]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def scores(self) -> list[Scores]:
        """The last evaluations of finished runs, if finite, by group."""
        return [scores_of(group, "final", self.column) for group in self.groups]

    @cached_property
    def methods(self) -> list[str]:
        """The distinct methods, sorted by recipe and settings; the index is the colour."""
        return list(dict.fromkeys(group.method for group in sorted(self.groups, key=lambda group: group.recipe)))

    @cached_property
    def envs(self) -> list[str]:
        """The distinct environments."""
        return list(dict.fromkeys(group.env for group in self.groups))

    @property
    def commits(self) -> list[str]:
        """The distinct commits, as in :attr:`RunRecord.short_commits`."""
        return list(dict.fromkeys(commit for run in self.runs for commit in run.short_commits))

    def of_env(self, env: str) -> list[Group]:
        """The groups on ``env``."""
        return [group for group in self.groups if group.env == env]

    def shown_path(self, run: RunRecord) -> str:
        """The folder of a run, relative to the sweep's."""
        return _relative(run.path, self.folder)

    def in_state(self, state: str) -> list[RunRecord]:
        """The runs in a :meth:`state`."""
        return [run for run in self.runs if self.state(run) == state]

    def state(self, run: RunRecord) -> Literal["done", "failed", "unfinished"]:
        """The state of a run; a running and an interrupted one are both unfinished."""
        if run.done is not None:
            return "done"
        return "failed" if self.shown_path(run) in self.failures else "unfinished"


def read_sweep(folder: Path, *, column: str | None = None, ignore: Sequence[str] = ()) -> Sweep:
    """The sweep in ``folder``.

    Args:
        folder: ``results/NAME``, or any folder of runs.
        ignore: settings that do not distinguish methods.
        column: the evaluation to score by; by default ``return_greedy_mean``, or else the first one.

    Raises:
        UserError: no such folder, no runs in it, runs that labels cannot distinguish, or no evaluation ``column``.
    """
    skipped: list[str] = []
    runs = find_runs(folder, skipped=skipped, training=True)
    runs, repeated = without_repetitions(without_settings(runs, ignore) if ignore else runs)
    skipped += [f"{sentence}." for sentence in repeated]
    # A failed run may have been run again.
    found = {run: failure(run) for run in sorted(marked(folder)) if not is_done(run)}
    failures = {_relative(run, folder): facts for run, facts in found.items() if facts is not None}
    unbegun = {_relative(path, folder) for path in not_begun(folder)}
    unbegun |= set(failures) - {_relative(run.path, folder) for run in runs}
    if not runs and not unbegun:
        raise UserError(f"FOLDER must hold run folders, got {folder} with none.")
    plan = _plan(folder)
    name, question = str(plan.pop("name", "") or folder.resolve().name), str(plan.pop("question", "") or "")
    groups = tuple(group_runs(runs))
    unread = (tuple(sorted(unbegun)), tuple(skipped))
    return Sweep(folder, name, question.strip(), plan, groups, failures, _column(runs, column), *unread)


def _column(runs: list[RunRecord], wanted: str | None) -> str:
    found = sorted({name for run in runs for name in run.names("eval")})
    found = [key for key in found if key.startswith("return_") and key.endswith("_mean")]
    if wanted is not None and wanted not in found:
        raise UserError(f"--column must be an evaluation of the runs, got {wanted!r}; they have {found or 'none'}.")
    return wanted or next((name for name in (*_PREFERRED, *found) if name in found), _PREFERRED[0])


def _plan(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.yaml"
    loaded = read_yaml(path) if path.exists() else {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold name, question, recipe, grid and seeds, got {type(loaded).__name__}.")
    return loaded


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else path.name
