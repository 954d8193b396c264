"""Logging of a run: rows of ``metrics.jsonl``, the progress line, and TensorBoard or W&B as extra views."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.run.divergence import warn
from torchrl_reg.lab.run.metrics import MetricsFile, RunningMeans
from torchrl_reg.lab.run.progress import Progress
from torchrl_reg.lab.run.settings import RunSettings
from torchrl_reg.lab.seeds.workers import current_worker

if TYPE_CHECKING:
    from torchrl.record.loggers import Logger

#: Attributes of a logger that are stored in a checkpoint.
_STORED = ("updates", "cut_episodes", "last_evaluation", "_returns", "_recent", "_logged_at", "_evaluated_at")
#: Episodes in ``return_last_100``.
_WINDOW = 100


class RunLogger:
    """Accumulates means and returns between training rows and writes rows to all outputs.

    A training row holds ``frames``, ``updates``, ``episodes`` (finished since the previous row), ``return_mean`` (over
    these, null if none), ``return_last_100`` (over the last 100 training episodes, or fewer; absent before the first
    one finishes), the means of the scalars passed to :meth:`record`, ``fps`` and ``wall_seconds``.

    Raises:
        UserError: the package of an extra logger is not installed.
    """

    def __init__(self, path: Path, settings: RunSettings) -> None:
        for name in settings.loggers:
            if importlib.util.find_spec(name) is None:
                raise UserError(f"run.loggers=[{name}] needs the package {name}, got none: pip install {name}.")
        self.updates = 0
        self.cut_episodes = 0
        self.last_evaluation: dict[str, Any] | None = None
        self._settings = settings
        self._metrics = MetricsFile(path / "metrics.jsonl")
        self._mark: Mapping[str, Any] = {}
        self._path = path
        self._views: list[Logger] = []
        self._means = RunningMeans()
        self._returns: list[float] = []
        self._recent: list[float] = []  # returns of the last episodes, across rows
        self._logged_at = self._evaluated_at = 0
        self._progress, self._seed = Progress(0, enabled=False), 0
        self._wall_before, self._wall_start = 0.0, time.perf_counter()
        self._cpu_before, self._cpu_start = 0.0, time.process_time()
        self._speed_mark = (0, self._wall_start)

    def start(self, total_frames: int, frames: int) -> None:
        """Opens the extra loggers and the progress line; speed is measured from here."""
        self._views = _open_views(self._settings.loggers, self._path)
        worker, make = current_worker(), partial(Progress, total_frames, enabled=self._settings.progress)
        if worker is None:
            self._progress = make()
        else:
            self._progress = worker.shared("progress", partial(make, seeds=worker.companions))
            self._seed = worker.number
        self._progress.begin(frames, self._seed)
        self._speed_mark = (frames, time.perf_counter())
        every = min(self._settings.log_every_frames, self._settings.evaluate_every_frames)
        first = min((frames // every + 1) * every, total_frames)
        begins = f"resuming {self._path} at frame {frames:,}, next" if frames else f"starting {self._path}, first"
        self.say(f"{begins} row at {first:,} of {total_frames:,} frames")

    def advance(self, frames: int, returns: list[float]) -> None:
        """Adds a batch of ``frames`` frames and the returns of the episodes that ended in it."""
        self._returns.extend(returns)
        self._progress.frames[self._seed] += frames

    def record(self, scalars: Mapping[str, Tensor] | TensorDictBase) -> None:
        """Counts an update and averages its scalars into the next training row."""
        self.updates += 1
        self._means.add(scalars)

    def train(
        self, frames: int, more_columns: Callable[[dict[str, Any]], dict[str, int]] = lambda _: {}
    ) -> dict[str, Any]:
        """Writes a training row unless there is one at ``frames`` already; returns it, with any non-finite numbers.

        ``more_columns(row)`` gives columns to add.
        """
        if self._logged_at == frames:
            return {}
        now = time.perf_counter()
        then_frames, then = self._speed_mark
        self._logged_at, self._speed_mark = frames, (frames, now)
        returns, self._returns = self._returns, []
        self._recent = recent = [*self._recent, *returns][-_WINDOW:]
        every = self._settings.diagnostics_every_updates
        row = {
            "event": "train",
            "frames": frames,
            "updates": self.updates,
            "episodes": len(returns),
            "return_mean": sum(returns) / len(returns) if returns else None,
            **({"return_last_100": sum(recent) / len(recent)} if recent else {}),
            **({"cut_episodes": self.cut_episodes} if self.cut_episodes else {}),
            **self._means.pop(),
            **({"diagnostics_every_updates": every} if every > 1 else {}),
            "fps": (frames - then_frames) / max(now - then, 1e-9),
            "wall_seconds": self.wall_seconds(),
        }
        row |= more_columns(row)
        self.write(row)
        self._progress.train(row, self._seed)
        return row

    def has_evaluation(self, frames: int) -> bool:
        """True if the policies were already evaluated at ``frames``."""
        return self._evaluated_at == frames

    def evaluation(self, frames: int, columns: Mapping[str, Any]) -> None:
        """Writes an evaluation row."""
        row = {"event": "eval", "frames": frames, "updates": self.updates, **columns}
        self._evaluated_at, self.last_evaluation = frames, row
        self.write(row)
        self._progress.evaluation(row, self._seed)

    def write(self, row: dict[str, Any]) -> None:
        """Appends ``row`` to ``metrics.jsonl`` and sends its numbers to the extra loggers."""
        self._metrics.append(row)
        for view in list(self._views):
            try:
                for name, value in row.items():
                    if isinstance(value, int | float) and name != "frames":
                        view.log_scalar(f"{row['event']}/{name}", value, step=row["frames"])
            except Exception as error:  # a view (its server, its disk) must never stop a run
                self._views.remove(view)
                lost = f"{type(view).__name__} shows nothing from frame {row['frames']:,} on"
                warn(f"{lost} ({type(error).__name__}: {error}).")

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._settings.progress:
            self._progress.say(text)

    def draw_curves(self) -> None:
        """Draws ``curves.png``; prints a line if that fails."""
        try:
            from torchrl_reg.lab.run.curves import draw_curves

            draw_curves(self._path)
        except ModuleNotFoundError as error:
            say(f"no curves.png: {error.name} is not installed.", to_stderr=True)
        except Exception as error:
            say(f"no curves.png: {type(error).__name__}: {' '.join(str(error).split())}.", to_stderr=True)

    def stop(self) -> None:
        """Closes the progress line."""
        self._progress.end(self._seed)

    def restart(self, *, keep: bool = False) -> None:
        """Drops all rows, as a run without a checkpoint starts again; ``keep`` moves them to a file beside it."""
        if keep and (kept := self._metrics.keep_beside()) is not None:
            warn(
                f"{self._path} has no checkpoint and starts again at frame 0; its earlier record is {kept.name} there."
            )
        self._metrics.restart()

    def resume(self) -> None:
        """Drops the rows past the loaded checkpoint.

        Raises:
            UserError: the rows up to that point have changed.
        """
        self._metrics.continue_from(self._mark)

    def wall_seconds(self) -> float:
        """Seconds of this run; earlier processes count up to their last checkpoint."""
        return self._wall_before + time.perf_counter() - self._wall_start

    def cpu_seconds(self) -> float:
        """Processor seconds of this run: an equal share for each seed of a process; earlier processes as above."""
        worker = current_worker()
        return self._cpu_before + (time.process_time() - self._cpu_start) / (1 if worker is None else worker.count)

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in _STORED}
        parts = {"means": self._means.state_dict(), "metrics": self._metrics.mark()}
        return {**state, **parts, "wall_seconds": self.wall_seconds(), "cpu_seconds": self.cpu_seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _STORED:
            setattr(self, name, state[name])
        self._means.load_state_dict(state["means"])
        self._mark, self._wall_before = state["metrics"], state["wall_seconds"]
        self._cpu_before = state["cpu_seconds"]


def _open_views(names: Sequence[str], path: Path) -> list[Logger]:
    from torchrl.record.loggers import get_logger

    # The same id on resume continues the same W&B run.
    identity = "-".join(path.resolve().parts[-4:]).replace("=", "_").replace(",", "_")[-100:]
    views = []
    for name in names:
        (path / name).mkdir(parents=True, exist_ok=True)
        shown_as = path.name if name == "wandb" else name
        ours = {"id": identity, "project": "torchrl_reg"}
        if name == "wandb":
            ours["reinit"] = "create_new"  # else W&B gives all seeds of a process one run
        views.append(cast("Logger", get_logger(name, str(path), shown_as, wandb_kwargs=ours)))  # type: ignore[arg-type]
    return views
