"""One run of a recipe: its folder, seeds, clock, rows, evaluations and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_reg.collectors import OverlappedCollector
from torchrl_reg.compat import fast_get
from torchrl_reg.lab.run.base_run import BaseRun
from torchrl_reg.lab.run.checkpoint import EnvironmentState, Resumption, last_checkpoint
from torchrl_reg.lab.run.collection import EPISODE_RETURN, AnyCollector, batches_of, make_collector, overlapped
from torchrl_reg.lab.run.divergence import ValueWatch, warn
from torchrl_reg.lab.run.evaluation import Evaluated, Evaluator, Policy
from torchrl_reg.lab.run.settings import RecipeConfig
from torchrl_reg.lab.run.stop import STOP, StopFrame
from torchrl_reg.lab.run.streams import named_device, seed_global_generators, stream_seed
from torchrl_reg.lab.seeds.workers import current_worker

P = ParamSpec("P")
T = TypeVar("T")
#: A run warns if a larger share of the targets' mass lies outside the grid of a categorical network.
MAX_CLIPPED_MASS = 0.01
#: Where ``run.checkpoint_every_frames`` is null: frames and minimum seconds between two checkpoints; and frames alone
#: where a checkpoint ends the episodes, as with seconds the episodes would depend on the clock.
CHECKPOINT_FRAMES, CHECKPOINT_SECONDS, ENDING_FRAMES = 10_000, 60.0, 50_000


class Run(BaseRun):
    """The folder, clock and record of a training run; any recipe shows the order of the calls.

    Args:
        config: a dataclass with a field ``run`` of type :class:`RunSettings`.
        frames_per_step: environment frames per environment step (Atari: 4).

    Attributes:
        path: the run folder.
        frames: environment frames collected so far, frame skip included.
        frames_per_step: frames per step of one environment.
        device: device of the networks.
        compiled: True if updates are a compiled graph, which is noted in rows.

    Raises:
        UserError: the folder belongs to another run, or a setting does not fit this machine.
    """

    def __init__(self, config: RecipeConfig, *, frames_per_step: int = 1) -> None:
        super().__init__(config, named_device(config.run.device))
        self.frames_per_step = frames_per_step
        self._evaluator = Evaluator(self.path, config, self._logger, self.device)
        self.compiled = False
        self._before = 0  # the frames before the last batch
        self._registered: list[tuple[int, Callable[[], object]]] = []
        self._parts: dict[str, Any] = {}
        self._resumption: Resumption | None = None
        self._ahead: OverlappedCollector | None = None
        self._values = ValueWatch(self.path)
        self._warned_of_clipping = False
        self._saved_at = time.monotonic()
        self._stop_frame = StopFrame()
        for name in ("torchrl", "tensordict"):  # at INFO they log every buffer they allocate
            logging.getLogger(name).setLevel(logging.WARNING)
        seed_global_generators(stream_seed(self.settings.seed, "network"))

    @property
    def updates(self) -> int:
        """Updates recorded so far."""
        return self._logger.updates

    # ------------------------------------------------------------ before the loop

    def evaluate_with(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Sets the policies to evaluate in ``env``, every ``run.evaluate_every_frames`` and at the end.

        ``{"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)}`` gives ``return_greedy_mean``,
        ``return_sampled_mean`` and so on; see :func:`torchrl_reg.lab.evaluate`.
        """
        self._evaluator.use(env, policies)

    # ------------------------------------------------------------ the loop

    def collect(
        self,
        env: EnvBase,
        policy: Policy,
        *,
        total_frames: int,
        frames_per_batch: int,
        parts: Mapping[str, Any] | None = None,
        track_trajectories: bool = False,
    ) -> Iterator[TensorDictBase]:
        """Yields batches ``[*env.batch_size, T]`` until ``total_frames`` frames have been collected.

        Resumes from the newest checkpoint. Between batches it logs, evaluates and checkpoints as set by
        ``run.*_every_frames``. Checkpoints do not affect the run unless the state of the environments cannot be
        restored: then they end the episodes, and the record counts them. Under :func:`recipe` a signal stops the run
        between two batches, with a checkpoint unless that would end episodes.

        ``parts`` is the content of a checkpoint beside the run itself: everything that learns, counts or anneals, by
        name (:meth:`~torchrl_reg.lab.Learner.parts`), each with ``state_dict`` and ``load_state_dict``.

        Raises:
            UserError: ``frames_per_batch`` does not fit the environments.
            UserError: the newest checkpoint is damaged, or one cannot be written.
            UserError: a loss, gradient or parameter is not finite at a log row, an evaluation or a checkpoint.
        """
        self._parts = dict(parts or {})
        settings = self.settings
        self.every(settings.log_every_frames, self._log_row)
        if settings.video_every_frames is not None:
            self.every(settings.video_every_frames, self._evaluator.film_next)
        self.every(settings.evaluate_every_frames, self._evaluate)
        # Before the collector exists: it resets the environments, and running statistics include that reset.
        env.set_seed(stream_seed(self.settings.seed, "train_env", 0))
        replay = next((part for part in self._parts.values() if isinstance(part, TensorDictReplayBuffer)), None)
        storing_device = self.device if replay is None else replay.storage.device

        def make(acting: Policy) -> AnyCollector:
            return make_collector(
                env,
                acting,
                frames_per_batch=frames_per_batch,
                frames_per_step=self.frames_per_step,
                device=self.device,
                storing_device=storing_device,
                track_trajectories=track_trajectories,
                kind=settings.collector,
            )

        ahead = None
        if self.settings.overlap:
            ahead = overlapped(make, policy, seed=stream_seed(self.settings.seed, "collector", 0))
            self._parts["collector"] = ahead
        collector, self._ahead = (make(policy) if ahead is None else ahead.collector), ahead
        self._resumption = Resumption(self, self._logger, self._parts, replay, EnvironmentState(collector))
        self._folder.open(self.device)
        resumed = self._resumption.load(self._folder.processes)
        self._logger.start(total_frames, self.frames)
        self._announce(resumed)
        try:
            self._resumption.begin(self.frames, resumed)
            self._saved_at = time.monotonic()
            STOP.notice = partial(_stop_message, self._resumption.checkpoints.folder, self._resumption.ends_episodes)
            with STOP.awaited(not self._resumption.ends_episodes):
                yield from self._loop(batches_of(ahead or collector), ahead, total_frames, frames_per_batch)
        finally:
            self._logger.stop()
            (ahead or collector).shutdown()

    def _loop(
        self,
        batches: Iterator[TensorDictBase],
        ahead: OverlappedCollector | None,
        total_frames: int,
        frames_per_batch: int,
    ) -> Iterator[TensorDictBase]:
        next_batch, resumption = self.guarded(partial(next, batches)), self._resumption
        assert resumption is not None
        if (worker := current_worker()) is not None:
            self._stop_frame = worker.shared("stop", StopFrame)
        while True:
            # Not while a batch is being collected: the state of the environments cannot be stored then.
            can_stop = ahead is None or ahead.stands_still
            if self._stop_frame.stop_or_pass(self.frames, frames_per_batch, worker, can_stop=can_stop):
                self._stop()
            if self.frames >= total_frames:
                return
            before, after = self.frames, self.frames + frames_per_batch
            is_last = after >= total_frames
            # Before the batch, since the collector must not run ahead of a checkpoint.
            checkpoint_due = not is_last and self._checkpoint_is_due(before, after)
            if ahead is not None:
                ahead.runs_ahead = not (is_last or checkpoint_due or STOP.requested is not None)
            batch = next_batch()
            self._before, self.frames = before, after
            self._logger.advance(after - before, finished_returns(batch))
            if checkpoint_due:
                resumption.truncate_episodes(batch)
            yield batch
            self._values.observe(batch)
            for frames, call in self._registered:
                if self.due(frames):
                    call()
            if checkpoint_due:
                resumption.save(self.frames)
                self._saved_at = time.monotonic()

    def _checkpoint_is_due(self, before: int, after: int) -> bool:
        every, resumption = self.settings.checkpoint_every_frames, self._resumption
        assert resumption is not None
        by_frames = every is not None or resumption.ends_episodes
        every = every or (ENDING_FRAMES if by_frames else CHECKPOINT_FRAMES)
        reached = after // every > before // every
        if by_frames or not reached:
            return reached

        def long_ago() -> bool:
            return time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS

        # Seeds wait for each other at a checkpoint, so they all use the first one's clock.
        worker = current_worker()
        return long_ago() if worker is None else worker.shared(f"checkpoint {after}", long_ago)

    def _stop(self) -> None:
        """Writes a checkpoint of all seeds and raises the signal's exception."""
        resumption = self._resumption
        assert resumption is not None and STOP.requested is not None
        folder = resumption.checkpoints.folder
        if last_checkpoint(folder) < self.frames:
            resumption.save(self.frames)
        worker = current_worker()
        stopped: set[int] = set() if worker is None else worker.shared("stopped", set)
        if last_checkpoint(folder) == self.frames > 0:
            stopped.add(self.frames)
            where = " and ".join(f"frame {frames:,}" for frames in sorted(stopped))
            STOP.notice = partial(str, f"stopped at {where} with a checkpoint; the same command continues there")
        if worker is not None:  # the first one that raises ends all
            worker.barrier("stop", None, list, last=True)
        raise STOP.requested

    def every(self, frames: int, call: Callable[[], object]) -> None:
        """Registers ``call``, to be called after each batch that reaches a multiple of ``frames``."""
        self._registered.append((frames, call))

    def due(self, every_frames: float, after_frames: int = 0) -> int:
        """The number of multiples of ``every_frames`` that this batch has passed, counted from ``after_frames``.

        Remainders carry over to the next batch, so the ratio is exact in the long run.
        """
        before, now = (int(max(0, frames - after_frames) // every_frames) for frames in (self._before, self.frames))
        return now - before

    def record(self, scalars: Mapping[str, Tensor] | TensorDictBase) -> None:
        """Counts one update and averages its detached scalars into the next training row."""
        self._logger.record(scalars)

    def finish(self) -> Path:
        """Writes the last rows and checkpoint, ``done.json`` and curves; returns the run folder."""
        assert self._resumption is not None, "collect() comes before finish()"
        with STOP.awaited(not self._resumption.ends_episodes):
            return self._finish(self._resumption)

    def _finish(self, resumption: Resumption) -> Path:
        self._log_row()
        if not self._logger.has_evaluation(self.frames):
            self._evaluate()
        resumption.finish(self.frames)
        counts = {"updates": self.updates, "compiled": self.compiled, "cut_episodes": self._logger.cut_episodes}
        bad = {"diverged_frames": self._values.diverged_frames}
        self._close({**counts, **bad, "first_not_finite_frames": resumption.watch.first_bad_frames})
        STOP.notice = None
        self._logger.draw_curves()  # last: the run counts as done without it
        return self.path

    # ------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The counters and the unfinished averages."""
        return {
            "frames": self.frames,
            "values": self._values.state_dict(),
            "logger": self._logger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.frames = state["frames"]
        self._values.load_state_dict(state["values"])
        self._logger.load_state_dict(state["logger"])

    def _log_row(self) -> None:
        compiled = {"compiled": True} if self.compiled else {}
        row = self._logger.train(self.frames, lambda row: compiled | self._values.check_divergence(row, self._gamma))
        self._check_finite(row)
        if row.get("clipped_mass", 0) > MAX_CLIPPED_MASS and not self._warned_of_clipping:
            self._warned_of_clipping = True
            warn(
                f"{row['clipped_mass']:.1%} of the targets' mass at frame {self.frames:,} lies outside the "
                "grid of returns and is clipped to its ends; a recipe's grid is net.value_min to net.value_max."
            )

    def _check_finite(self, row: Mapping[str, Any], *, can_go_on: bool = True) -> None:
        if self._resumption is not None:  # None: an update before the first batch
            self._resumption.check_finite(self.frames, row, can_go_on=can_go_on)

    def _evaluate(self) -> None:
        """Evaluates the policies if they are finite: the last good policy must stay in the folder."""
        if self._ahead is not None:
            self._ahead.wait()
        self._check_finite({})
        self.guarded(self._evaluator.evaluate)(self.frames)

    def guarded(self, call: Callable[P, T]) -> Callable[P, T]:
        """``call``, with its errors reported as divergence if trained tensors are not finite."""

        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return call(*args, **kwargs)
            except (RuntimeError, ValueError):
                self._check_finite({}, can_go_on=False)
                raise

        return guarded

    @property
    def _gamma(self) -> float | None:
        """The loss's discount, if it has a value estimator."""
        estimator = getattr(self._parts.get("loss"), "_value_estimator", None)
        gamma = getattr(estimator, "gamma", None)
        return None if gamma is None else float(gamma)

    def _announce(self, resumed: bool) -> None:
        if resumed:
            self._logger.resume()
        if self._resumption is not None and self._resumption.ends_episodes:
            every = self.settings.checkpoint_every_frames or ENDING_FRAMES
            ends = f"a checkpoint ends all episodes, every {every:,} frames"
            self.say(f"this environment's state cannot be stored: {ends}")


def finished_returns(batch: TensorDictBase) -> list[float]:
    """Undiscounted returns of the episodes that end in ``batch``, in the order of their ends."""
    done = fast_get(batch, ("next", "done"))
    if not done.any():
        return []
    returns, time = batch["next", EPISODE_RETURN], done.ndim - 2
    return returns.movedim(time, 0)[done.movedim(time, 0)].tolist()


def _stop_message(checkpoints: Path, ends_episodes: bool) -> str:
    """The message of a run stopped without a checkpoint; a method of the run would keep its lock alive."""
    frames = last_checkpoint(checkpoints)
    message = f"stopped; the same command continues from frame {frames:,}"
    if frames == 0:
        message = "stopped before the first checkpoint; the same command starts again at frame 0"
    return f"{message}, as a checkpoint in between would end all episodes" if ends_episodes else message
