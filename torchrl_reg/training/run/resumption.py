"""What a run needs to go on as if it had never been stopped: what learns, its environments and its generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer

from torchrl_reg.training.loop.collection import cut_episodes
from torchrl_reg.training.loop.replay import ReplayChunks
from torchrl_reg.training.run.checkpoint import CheckpointFolder
from torchrl_reg.training.run.env_state import EnvironmentState
from torchrl_reg.training.run.finite import FiniteWatch
from torchrl_reg.training.run.generators import GeneratorStates
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.seeds.lanes import current_lane
from torchrl_reg.training.settings import RunSettings
from torchrl_reg.training.streams import seed_global_generators, stream_seed


class Resumption:
    """Saves everything that was tracked, and restores it when the run starts again.

    Args:
        path: the run folder.
        settings: of the run.
        logger: of the run; it counts episodes that a checkpoint ends.

    Attributes:
        made: what :class:`Run` made for the recipe; a checkpoint without one of it is refused.
        replay: the replay buffer among it.
    """

    def __init__(self, path: Path, settings: RunSettings, logger: RunLogger) -> None:
        self.made: dict[str, Any] = {}
        self.replay: TensorDictReplayBuffer | None = None
        self._path, self._settings, self._logger = path, settings, logger
        self._tracked: dict[str, Any] = {}
        self._watch = FiniteWatch(path, settings.on_nan)
        self._checkpoints: CheckpointFolder | None = None
        self._environments: EnvironmentState | None = None

    @property
    def first_bad_frames(self) -> int | None:
        """The first frame at which something learnt was found not to be finite."""
        return self._watch.first_bad_frames

    @property
    def ends_episodes(self) -> bool:
        """Whether a checkpoint ends all episodes, because the environments' state cannot be stored."""
        return not self.environments.is_transparent

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of the run folder."""
        assert self._checkpoints is not None, "collect() comes before finish()"
        return self._checkpoints

    @property
    def environments(self) -> EnvironmentState:
        """Those that are collected from."""
        assert self._environments is not None
        return self._environments

    def track(self, components: Mapping[str, Any]) -> None:
        """Names parts with ``state_dict`` and ``load_state_dict``; ``None`` is skipped."""
        self._tracked.update({k: v for k, v in components.items() if v is not None})

    def open(self, run: Any, environments: EnvironmentState, **components: Any) -> None:
        """Finds the checkpoints of ``run``, whose counters and further ``components`` they hold too.

        Raises:
            ValueError: something that was made for the recipe is not tracked.
        """
        kept = [id(part) for part in self._tracked.values()]
        untracked = [name for name, part in self.made.items() if id(part) not in kept]
        if untracked:
            raise ValueError(f"run.track() must name all that a resumed run needs, got none of {', '.join(untracked)}.")
        self._environments = environments
        parts = {k: v for k, v in self._tracked.items() if v is not self.replay}
        folder = self._path / "checkpoints"
        named, chunks = {}, None
        if self.replay is not None:  # "if self.replay" would be false for an empty buffer
            chunks = ReplayChunks(folder / "replay", self.replay)
            named["replay"] = self.replay._rng
        # The generators come last: restoring environments may draw from the global ones.
        parts |= {"run": run, **components, "environments": environments, "generators": GeneratorStates(**named)}
        self._checkpoints = CheckpointFolder(folder, parts, chunks)

    def load(self) -> bool:
        """Loads the newest checkpoint, of several seeds the newest that all have; False where there is none."""
        lane = current_lane()
        if lane is not None:
            self.checkpoints.go_back(lane.meet("resume", self.checkpoints.frames(), _newest_of_all))
        resumed = self.checkpoints.load_latest() is not None
        if lane is not None:
            lane.prepare()
        return resumed

    def begin(self, frames: int, resumed: bool) -> None:
        """Seeds every stream of a new run; of a resumed one, restarts environments that could not be restored."""
        environments, seed = self.environments, self._settings.seed
        self._watch.start(frames)
        if not resumed:
            self._logger.restart()
            seed_global_generators(stream_seed(seed, "actor", 0))
            if self.replay is not None:
                self.replay._rng.manual_seed(stream_seed(seed, "replay", 0))
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
        """A checkpoint between two batches."""
        self._save(frames)
        if self.ends_episodes:
            self._restart_environments(frames)

    def finish(self, frames: int) -> None:
        """The last checkpoint, which alone remains, without the replay buffer."""
        self._save(frames, with_replay=False)
        _wait_for_all_seeds()  # until all have one: of a seed left alone nothing may remain to be computed
        self.checkpoints.keep_only_last()

    def is_finite(self, frames: int, row: Mapping[str, Any], *, can_go_on: bool = True) -> bool:
        """Whether the means in ``row`` and all that learns are finite.

        Raises:
            DivergedError: they are not, and ``run.on_nan`` is ``"stop"`` or the run cannot go on.
        """
        if self._checkpoints is None:  # an update before the first batch
            return True
        optimizers = [part for part in self._tracked.values() if isinstance(part, torch.optim.Optimizer)]
        return self._watch.is_finite(frames, row, optimizers, self.checkpoints.newest(), can_go_on=can_go_on)

    def _save(self, frames: int, *, with_replay: bool = True) -> None:
        """A checkpoint of the state now, unless that is not finite: the last good one stays."""
        _wait_for_all_seeds()  # so that they are never further apart than the checkpoints each keeps
        if self.is_finite(frames, {}):
            self.checkpoints.save(frames, with_replay=with_replay)

    def _restart_environments(self, frames: int) -> None:
        self.environments.restart(stream_seed(self._settings.seed, "train_env", frames))


def _wait_for_all_seeds() -> None:
    """Until all seeds of this process have come as far; afterwards Python's ``random`` is this one's."""
    if (lane := current_lane()) is not None:
        lane.meet("checkpoint", None, list)


def _newest_of_all(frames: Sequence[set[int]]) -> list[int]:
    """Of what each seed has, the newest that all have; the newest of each if there is none, as one failed long ago."""
    common = max(set.intersection(*frames), default=None)
    return [max(each) if common is None else common for each in frames]
