"""One run of a recipe: its folder, seeds, clock, rows, evaluations and checkpoints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import Sampler, TensorStorage
from torchrl.envs import EnvBase, Transform
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.training.checks import planned_updates, settings_of, without_effect
from torchrl_reg.training.collection import finished_returns, make_collector
from torchrl_reg.training.device import named_device
from torchrl_reg.training.env_state import EnvironmentState
from torchrl_reg.training.errors import require
from torchrl_reg.training.evaluation import Evaluated, Policy
from torchrl_reg.training.evaluator import Evaluator
from torchrl_reg.training.frame_stack import FrameStackStorage
from torchrl_reg.training.joint_collection import joint_batches
from torchrl_reg.training.lanes import current_lane
from torchrl_reg.training.recorded import Recorded
from torchrl_reg.training.replay import draw_minibatches
from torchrl_reg.training.resumption import Resumption
from torchrl_reg.training.seeds import seed_global_generators, stream_seed
from torchrl_reg.training.storage import TransitionStorage
from torchrl_reg.training.update import Update, make_update


class Run(Recorded):
    """What every method needs around its own lines; any recipe shows the order of the calls.

    Args:
        config: a dataclass with a field ``run`` of type :class:`RunSettings`.
        frames_per_step: environment frames that one step of the environment takes (Atari: 4).

    Attributes:
        path: the run folder.
        frames: environment frames collected so far, frame skip included.
        frames_per_step: of one step of one environment.
        device: where the networks belong.
        cudagraphs: whether updates are captured; the optimizer then needs ``capturable=True``.

    Raises:
        ConfigError: the folder belongs to another run, or a setting does not fit this machine.
    """

    def __init__(self, config: Any, *, frames_per_step: int = 1) -> None:
        super().__init__(config, named_device(config.run.device))
        self.cudagraphs = self.settings.cudagraphs
        self.frames_per_step = frames_per_step
        self._evaluator = Evaluator(self.path, config, self._journal, self.device)
        self._resumption = Resumption(self.path, self.settings, self._journal)
        self._granted_updates = 0
        _quiet_libraries()
        self.seed_networks()

    @property
    def updates(self) -> int:
        """Updates recorded so far."""
        return self._journal.updates

    # ------------------------------------------------------------ what a recipe builds with

    def seed_networks(self) -> None:
        """Seeds the global generators from the stream ``"network"``; done once at construction."""
        seed_global_generators(stream_seed(self.settings.seed, "network"))

    def replay(
        self,
        capacity: int,
        batch_size: int,
        *,
        storage: TensorStorage | None = None,
        frame_stack: int = 1,
        num_envs: int = 1,
        sampler: Sampler | None = None,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
    ) -> TensorDictReplayBuffer:
        """A replay buffer of ``capacity`` transitions that samples from the stream ``"replay"``.

        They lie on ``device`` (default: the run's), or in a ``storage`` of that capacity. A sampler over
        trajectories needs a two-dimensional storage, or ``collect(track_trajectories=True)``. Observations that stack
        ``frame_stack`` > 1 images are stored one image at a time (:class:`FrameStackStorage`): extend it with rows of
        ``num_envs`` environments in order of time.
        """
        if "loss" in self._resumption.made:
            raise ValueError(
                "run.replay() must come before run.make_update(), which writes the priorities back, got it after."
            )
        require(capacity >= batch_size, "replay capacity", f"at least {batch_size}", capacity)
        if frame_stack > 1:
            capacity -= capacity % num_envs
            storage = FrameStackStorage(capacity, stack=frame_stack, num_envs=num_envs, device=device or self.device)
        elif storage is None:
            storage = TransitionStorage(capacity, device=device or self.device)
        require(storage.max_size == capacity, "replay capacity", f"that of its storage, {storage.max_size}", capacity)
        replay = TensorDictReplayBuffer(
            storage=storage,
            sampler=sampler,
            transform=transform,
            batch_size=batch_size,
            generator=torch.Generator(storage.device),
        )
        self._resumption.made["replay"] = self._resumption.replay = replay
        return replay

    def make_update(
        self,
        loss: LossModule,
        optimizer: torch.optim.Optimizer,
        target: TargetNetUpdater | None = None,
        *,
        max_grad_norm: float | None = None,
    ) -> Update:
        """:func:`make_update` with this run's device, replay buffer and compilation settings."""
        every = self.settings.diagnostics_every_updates
        made = {"loss": loss, "optimizer": optimizer, "target": target}
        self._resumption.made.update({name: part for name, part in made.items() if part is not None})
        return make_update(
            loss,
            optimizer,
            target,
            replay=self._resumption.replay,
            max_grad_norm=max_grad_norm,
            device=self.device,
            compile=self.settings.compile,
            updates=planned_updates(settings_of(getattr(self._folder.config, "algo", None))),
            cudagraphs=self.cudagraphs,
            wants_diagnostics=None if every == 1 else lambda: self.updates % every == 0,
        )

    def track(self, **components: Any) -> None:
        """Names what a checkpoint holds: all that learns, counts or anneals.

        Each component has ``state_dict`` and ``load_state_dict``; ``None`` is skipped.
        """
        self._resumption.track(components)

    def evaluate_with(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Names who is evaluated, and where, every ``run.evaluate_every_frames`` and at the end.

        ``{"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)}`` gives ``return_greedy_mean``,
        ``return_sampled_mean`` and so on; see :func:`torchrl_reg.training.evaluate`.
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
        track_trajectories: bool = False,
    ) -> Iterator[TensorDictBase]:
        """Yields batches ``[*env.batch_size, T]`` until ``total_frames`` frames have been seen.

        Starts where the newest checkpoint left off. Between two batches it logs, evaluates and
        checkpoints as ``run.*_every_frames`` say. A checkpoint changes nothing, unless the environments cannot
        be brought back to where they were: then it ends their episodes, which the record counts.

        Raises:
            ConfigError: ``frames_per_batch`` does not fit the environments.
            CheckpointError: the newest checkpoint is damaged, or one cannot be written.
            DivergedError: at a log row or a checkpoint, the loss, a gradient or a parameter is not finite.
        """
        # The collector resets the environments once by itself, and running statistics remember that.
        env.set_seed(stream_seed(self.settings.seed, "train_env", 0))
        replay, resumption = self._resumption.replay, self._resumption
        collector = make_collector(
            env,
            policy,
            frames_per_batch=frames_per_batch,
            frames_per_step=self.frames_per_step,
            device=self.device,
            storing_device=self.device if replay is None else replay.storage.device,
            track_trajectories=track_trajectories,
            kind=self.settings.collector,
        )
        resumption.open(self, EnvironmentState(collector))
        self._folder.open(self.device)
        resumed = resumption.load()
        self._journal.start(total_frames, self.frames)
        self._announce(resumed)
        try:
            resumption.begin(self.frames, resumed)
            lane = current_lane()
            batches = iter(collector) if lane is None else joint_batches(lane, collector)
            while self.frames < total_frames:
                batch = next(batches)
                before, self.frames = self.frames, self.frames + self._frames_in(batch)
                self._journal.advance(self.frames - before, finished_returns(batch))
                checkpoint_due = self.frames < total_frames and self._due(self.settings.checkpoint_every_frames, before)
                if checkpoint_due:
                    resumption.cut(batch)
                yield batch
                if self._due(self.settings.log_every_frames, before):
                    self._log_row()
                if self._due(self.settings.evaluate_every_frames, before):
                    self._evaluator.evaluate(self.frames)
                if checkpoint_due:
                    resumption.save(self.frames)
        finally:
            self._journal.stop()
            collector.shutdown()

    def updates_due(self, update_every_frames: float, learning_starts_frames: int = 0) -> int:
        """Updates to make now so that one falls on every ``update_every_frames`` frames.

        Frames before ``learning_starts_frames`` earn none. What does not divide evenly is carried
        over, so the ratio is exact in the long run; call it once per batch.
        """
        earned = int(max(0, self.frames - learning_starts_frames) // update_every_frames)
        due, self._granted_updates = earned - self._granted_updates, earned
        return due

    def minibatches(
        self,
        replay: TensorDictReplayBuffer,
        update_every_frames: float,
        learning_starts_frames: int = 0,
    ) -> Iterator[TensorDictBase]:
        """A minibatch for each of the :meth:`updates_due`, gathered together where that is exact."""
        due = self.updates_due(update_every_frames, learning_starts_frames)
        return draw_minibatches(replay, due)

    def annealed(self, start: float, end: float, over_frames: int, after_frames: int = 0) -> float:
        """``start`` for ``after_frames`` frames, then a line to ``end`` over the next ``over_frames``, then ``end``."""
        passed = (self.frames - after_frames) / over_frames
        return start + (end - start) * min(1.0, max(0.0, passed))

    def record(self, scalars: Mapping[str, Tensor] | TensorDictBase) -> None:
        """Counts one update and averages its detached scalars into the next training row."""
        self._journal.record(scalars)

    def finish(self) -> Path:
        """Last rows, last checkpoint, ``done.json``, curves; returns the run folder."""
        self._log_row()
        if not self._journal.has_evaluation(self.frames):
            self._evaluator.evaluate(self.frames)
        self._resumption.finish(self.frames)
        counts = {"updates": self.updates, "cut_episodes": self._journal.cut_episodes}
        self._close({**counts, "first_not_finite_frames": self._resumption.first_bad_frames})
        self._journal.draw_curves()  # last: whoever waits for the run does not wait for a plot
        return self.path

    # ------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The counters and the unfinished averages."""
        return {
            "frames": self.frames,
            "granted_updates": self._granted_updates,
            "journal": self._journal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        self.frames = state["frames"]
        self._granted_updates = state["granted_updates"]
        self._journal.load_state_dict(state["journal"])

    def _frames_in(self, batch: TensorDictBase) -> int:
        return batch.numel() * self.frames_per_step

    def _due(self, every: int, before: int) -> bool:
        return self.frames // every > before // every

    def _log_row(self) -> None:
        self._resumption.is_finite(self.frames, self._journal.train(self.frames))

    def _announce(self, resumed: bool) -> None:
        for sentence in without_effect(getattr(self._folder.config, "algo", None)):
            print(f"warning: {sentence}.", file=sys.stderr, flush=True)
        if resumed:
            self._journal.resume()
        if self._resumption.ends_episodes:
            every = self.settings.checkpoint_every_frames
            self.say(
                f"this environment's state cannot be stored: a checkpoint ends all episodes, every {every:,} frames"
            )


def _quiet_libraries() -> None:
    """TorchRL and TensorDict announce every buffer they allocate."""
    for name in ("torchrl", "tensordict"):
        logging.getLogger(name).setLevel(logging.WARNING)
