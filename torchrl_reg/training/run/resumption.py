"""Saves and restores what learns, the environments and the generators, so that a stopped run goes on unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer

from torchrl_reg.training.loop.collection import cut_episodes
from torchrl_reg.training.loop.replay import ReplayChunks
from torchrl_reg.training.run.checkpoint import CheckpointFolder
from torchrl_reg.training.run.divergence import FiniteWatch
from torchrl_reg.training.run.env_state import EnvironmentState, GeneratorStates
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.run.recorded import Recorded
from torchrl_reg.training.seeds.workers import current_worker
from torchrl_reg.training.streams import seed_global_generators, stream_seed


class Resumption:
    """Saves everything that was tracked, and restores it when the run starts again.

    Args:
        run: whose folder it is; its counters are part of a checkpoint.
        logger: of the run; it counts episodes that a checkpoint ends.
        tracked: the recipe's parts, by name.
        replay: the replay buffer, if it is one of them.
        environments: those that are collected from.

    Attributes:
        checkpoints: those of the run folder.
        watch: stops a run whose numbers are not finite.
        ends_episodes: True if a checkpoint ends all episodes, because the environments' state cannot be stored.
    """

    def __init__(
        self,
        run: Recorded,
        logger: RunLogger,
        tracked: Mapping[str, Any],
        replay: TensorDictReplayBuffer | None,
        environments: EnvironmentState,
    ) -> None:
        self.watch = FiniteWatch(run.path, run.settings.on_nan)
        self.ends_episodes = not environments.is_transparent
        self._seed, self._logger, self._tracked, self._replay = run.settings.seed, logger, tracked, replay
        self._environments = environments
        parts = {k: v for k, v in tracked.items() if v is not replay}
        folder = run.path / "checkpoints"
        named, chunks = {}, None
        if replay is not None:  # "if replay" would be false for an empty buffer
            chunks = ReplayChunks(folder / "replay", replay)
            named["replay"] = replay._rng
        # The generators come last: restoring environments may draw from the global ones.
        parts |= {"run": run, "environments": environments, "generators": GeneratorStates(**named)}
        self.checkpoints = CheckpointFolder(folder, parts, chunks)

    def load(self) -> bool:
        """Loads the newest checkpoint, of several seeds the newest that all have; False where there is none."""
        worker = current_worker()
        if worker is not None:
            self.checkpoints.go_back(worker.barrier("resume", self.checkpoints.frames(), _newest_of_all))
        resumed = self.checkpoints.load_latest() is not None
        if worker is not None:
            worker.prepare()
        return resumed

    def begin(self, frames: int, resumed: bool) -> None:
        """Seeds every stream of a new run; of a resumed one, restarts environments that could not be restored."""
        environments = self._environments
        self.watch.start(frames)
        if not resumed:
            self._logger.restart(keep=True)
            seed_global_generators(stream_seed(self._seed, "actor", 0))
            if self._replay is not None:
                self._replay._rng.manual_seed(stream_seed(self._seed, "replay", 0))
        elif environments.is_transparent and environments.is_restored:
            return
        elif environments.is_transparent:
            self._logger.say("this machine computes the environments differently: their episodes end here")
            self._logger.cut_episodes += environments.count
            for part in self._tracked.values():
                if hasattr(part, "cut_episodes"):
                    part.cut_episodes()
        self._restart_environments(frames)

    def cut(self, batch: TensorDictBase) -> None:
        """Ends the episodes of ``batch``, which a checkpoint follows, where the environments cannot be stored."""
        if self.ends_episodes:
            self._logger.cut_episodes += cut_episodes(batch)

    def save(self, frames: int) -> None:
        """Writes a checkpoint between two batches."""
        self._save(frames)
        if self.ends_episodes:
            self._restart_environments(frames)

    def finish(self, frames: int) -> None:
        """Writes the last checkpoint, which alone remains, without the replay buffer."""
        self._save(frames, with_replay=False)
        wait_for_all_seeds()  # until all have one: of a seed left alone nothing may remain to be computed
        self.checkpoints.keep_only_last()

    def is_finite(self, frames: int, row: Mapping[str, Any], *, can_go_on: bool = True) -> bool:
        """True if the means in ``row`` and all that learns are finite.

        Raises:
            DivergedError: they are not, and ``run.on_nan`` is ``"stop"`` or the run cannot go on.
        """
        optimizers = [part for part in self._tracked.values() if isinstance(part, torch.optim.Optimizer)]
        return self.watch.is_finite(frames, row, optimizers, self.checkpoints.newest(), can_go_on=can_go_on)

    def _save(self, frames: int, *, with_replay: bool = True) -> None:
        """A checkpoint of the state now, unless that is not finite: the last good one stays."""
        wait_for_all_seeds()  # so that they are never further apart than the checkpoints each keeps
        if self.is_finite(frames, {}):
            self.checkpoints.save(frames, with_replay=with_replay)

    def _restart_environments(self, frames: int) -> None:
        self._environments.restart(stream_seed(self._seed, "train_env", frames))


def wait_for_all_seeds() -> None:
    """Waits until all seeds of this process have come as far; afterwards Python's ``random`` is this one's."""
    if (worker := current_worker()) is not None:
        worker.barrier("checkpoint", None, list)


def _newest_of_all(frames: Sequence[set[int]]) -> list[int]:
    """Of what each seed has, the newest that all have; the newest of each if there is none, as one failed long ago."""
    common = max(set.intersection(*frames), default=None)
    return [max(each) if common is None else common for each in frames]
