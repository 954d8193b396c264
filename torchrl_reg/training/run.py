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

from torchrl_reg.training.checkpoint import CheckpointFolder
from torchrl_reg.training.checks import without_effect
from torchrl_reg.training.collection import cut_episodes, finished_returns, make_collector
from torchrl_reg.training.device import named_device
from torchrl_reg.training.env_state import EnvironmentState
from torchrl_reg.training.errors import ConfigError, require
from torchrl_reg.training.evaluation import Evaluated, Policy, evaluate, with_mode
from torchrl_reg.training.finite import FiniteWatch
from torchrl_reg.training.frame_stack import FrameStackStorage
from torchrl_reg.training.generators import GeneratorStates
from torchrl_reg.training.journal import Journal
from torchrl_reg.training.loggers import check_loggers
from torchrl_reg.training.policy_file import PolicyFile
from torchrl_reg.training.replay import ReplayChunks, draw_minibatches
from torchrl_reg.training.run_folder import RunFolder
from torchrl_reg.training.seeds import seed_global_generators, stream_seed
from torchrl_reg.training.storage import TransitionStorage
from torchrl_reg.training.update import Update, make_update
from torchrl_reg.training.videos import Videos


class Run:
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
        self.settings = config.run
        self.frames = 0
        self.device = named_device(self.settings.device)
        self.cudagraphs = self.settings.cudagraphs
        self.frames_per_step = frames_per_step
        self._folder = RunFolder(config)
        if self._folder.is_done:
            raise ConfigError(f"run.dir={self.path} holds a finished run.")
        check_loggers(self.settings.loggers)
        self._journal = Journal(self.path, self.settings)
        self._watch = FiniteWatch(self.path, self.settings.on_nan)
        self._policy_file = PolicyFile(self.path, config)
        self._videos = Videos(self.path, self.settings.video_every_frames, self.settings.seed)
        self._granted_updates = 0
        self._tracked: dict[str, Any] = {}
        self._made: dict[str, Any] = {}
        self._replay: TensorDictReplayBuffer | None = None
        self._checkpoints: CheckpointFolder | None = None
        self._evaluation: tuple[EnvBase, Mapping[str, Evaluated]] | None = None
        torch.set_num_threads(self.settings.threads)
        _quiet_libraries()
        self.seed_networks()

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

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
        if "loss" in self._made:
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
        self._replay = TensorDictReplayBuffer(
            storage=storage,
            sampler=sampler,
            transform=transform,
            batch_size=batch_size,
            generator=torch.Generator(storage.device),
        )
        self._made["replay"] = self._replay
        return self._replay

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
        self._made.update(loss=loss, optimizer=optimizer)
        if target is not None:
            self._made["target"] = target
        return make_update(
            loss,
            optimizer,
            target,
            replay=self._replay,
            max_grad_norm=max_grad_norm,
            device=self.device,
            compile=self.settings.compile,
            cudagraphs=self.cudagraphs,
            wants_diagnostics=None if every == 1 else lambda: self.updates % every == 0,
        )

    def track(self, **components: Any) -> None:
        """Names what a checkpoint holds: all that learns, counts or anneals.

        Each component has ``state_dict`` and ``load_state_dict``; ``None`` is skipped.
        """
        self._tracked.update({k: v for k, v in components.items() if v is not None})

    def evaluate_with(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Names who is evaluated, and where, every ``run.evaluate_every_frames`` and at the end.

        ``{"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)}`` gives ``return_greedy_mean``,
        ``return_sampled_mean`` and so on; see :func:`torchrl_reg.training.evaluate`.
        """
        self._evaluation = (env, policies)

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
        collector = make_collector(
            env,
            policy,
            frames_per_batch=frames_per_batch,
            frames_per_step=self.frames_per_step,
            device=self.device,
            storing_device=self.device if self._replay is None else self._replay.storage.device,
            track_trajectories=track_trajectories,
            kind=self.settings.collector,
        )
        environments = EnvironmentState(collector)
        self._checkpoints = self._open_checkpoints(environments)
        self._folder.open(self.device)
        resumed = self._checkpoints.load_latest() is not None
        self._journal.start(total_frames, self.frames)
        self._watch.start(self.frames)
        self._announce(environments, resumed)
        try:
            self._begin(environments, resumed)
            batches = iter(collector)
            while self.frames < total_frames:
                batch = next(batches)
                before, self.frames = self.frames, self.frames + self._frames_in(batch)
                self._journal.advance(self.frames - before, finished_returns(batch))
                checkpoint_due = self.frames < total_frames and self._due(self.settings.checkpoint_every_frames, before)
                if checkpoint_due and not environments.is_transparent:
                    self._journal.cut(cut_episodes(batch))
                yield batch
                if self._due(self.settings.log_every_frames, before):
                    self._log_row()
                if self._due(self.settings.evaluate_every_frames, before):
                    self._evaluate()
                if checkpoint_due:
                    self._save_checkpoint()
                    if not environments.is_transparent:
                        environments.restart(stream_seed(self.settings.seed, "train_env", self.frames))
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

    def log(self, event: str, **columns: Any) -> None:
        """Writes a row of the recipe's own: ``{"event": event, "frames": ..., **columns}``."""
        self._journal.write({"event": event, "frames": self.frames, **columns})

    def finish(self) -> Path:
        """Last rows, last checkpoint, curves, ``done.json``; returns the run folder."""
        assert self._checkpoints is not None, "collect() comes before finish()"
        self._log_row()
        if not self._journal.has_evaluation(self.frames):
            self._evaluate()
        self._save_checkpoint(with_replay=False)
        self._checkpoints.keep_only_last()
        self._journal.draw_curves()
        self._folder.close(
            {
                "frames": self.frames,
                "updates": self.updates,
                "wall_seconds": self._journal.wall_seconds(),
                "cut_episodes": self._journal.cut_episodes,
                "evaluation": self._journal.last_evaluation,
                "first_not_finite_frames": self._watch.first_bad_frames,
            }
        )
        self._journal.say(f"finished: {self.path}")
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

    def _open_checkpoints(self, environments: EnvironmentState) -> CheckpointFolder:
        kept = [id(part) for part in self._tracked.values()]
        untracked = [name for name, part in self._made.items() if id(part) not in kept]
        if untracked:
            raise ValueError(f"run.track() must name all that a resumed run needs, got none of {', '.join(untracked)}.")
        parts = {k: v for k, v in self._tracked.items() if v is not self._replay}
        folder = self.path / "checkpoints"
        named, chunks = {}, None
        if self._replay is not None:  # "if self._replay" would be false for an empty buffer
            chunks = ReplayChunks(folder / "replay", self._replay)
            named["replay"] = self._replay._rng
        # The generators come last: bringing environments back may draw from the global ones.
        parts |= {"run": self, "environments": environments, "generators": GeneratorStates(**named)}
        return CheckpointFolder(folder, parts, chunks)

    def _save_checkpoint(self, *, with_replay: bool = True) -> None:
        """A checkpoint of the state now, unless that is not finite: the last good one stays."""
        assert self._checkpoints is not None
        if self._is_finite({}):
            self._checkpoints.save(self.frames, with_replay=with_replay)

    def _announce(self, environments: EnvironmentState, resumed: bool) -> None:
        for sentence in without_effect(getattr(self._folder.config, "algo", None)):
            print(f"warning: {sentence}.", file=sys.stderr, flush=True)
        if resumed:
            self._journal.resume()
        if not environments.is_transparent:
            every = self.settings.checkpoint_every_frames
            self._journal.say(
                f"this environment's state cannot be stored: a checkpoint ends all episodes, every {every:,} frames"
            )

    def _begin(self, environments: EnvironmentState, resumed: bool) -> None:
        """Seeds every stream of a new run; of a resumed one, restarts environments that could not be brought back."""
        if not resumed:
            self._journal.restart()
            seed = self.settings.seed
            seed_global_generators(stream_seed(seed, "actor", 0))
            if self._replay is not None:
                self._replay._rng.manual_seed(stream_seed(seed, "replay", 0))
        elif environments.is_transparent and environments.is_restored:
            return
        elif environments.is_transparent:
            self._journal.say("this machine computes the environments differently: their episodes end here")
            self._journal.cut(environments.count)
            for part in self._tracked.values():
                if hasattr(part, "cut_episodes"):
                    part.cut_episodes()
        environments.restart(stream_seed(self.settings.seed, "train_env", self.frames))

    # ------------------------------------------------------------ schedules

    def _frames_in(self, batch: TensorDictBase) -> int:
        return batch.numel() * self.frames_per_step

    def _due(self, every: int, before: int) -> bool:
        return self.frames // every > before // every

    def _log_row(self) -> None:
        self._is_finite(self._journal.train(self.frames))

    def _is_finite(self, row: Mapping[str, Any]) -> bool:
        assert self._checkpoints is not None
        optimizers = [part for part in self._tracked.values() if isinstance(part, torch.optim.Optimizer)]
        return self._watch.is_finite(self.frames, row, optimizers, self._checkpoints.newest())

    def _evaluate(self) -> None:
        if self._evaluation is None:
            return
        env, policies = self._evaluation
        columns = evaluate(
            env,
            policies,
            episodes=self.settings.eval_episodes,
            seed=self.settings.seed,
            device=self.device,
        )
        self._journal.evaluation(self.frames, columns)
        acting = {name: with_mode(evaluated)[0] for name, evaluated in policies.items()}
        self._policy_file.write(acting, self._journal.last_evaluation or {}, self._journal.say)
        self._videos.film(self.frames, self._journal.say)


def _quiet_libraries() -> None:
    """TorchRL and TensorDict announce every buffer they allocate."""
    for name in ("torchrl", "tensordict"):
        logging.getLogger(name).setLevel(logging.WARNING)
