"""Checkpoints of a run: their contents, their files, and resuming from them."""

from __future__ import annotations

import random
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter
from torchrl.checkpoint import CheckpointError as TorchRLCheckpointError
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_reg.collectors import FastCollector
from torchrl_reg.envs import Restorable
from torchrl_reg.lab.errors import UserError, first_line
from torchrl_reg.lab.run.base_run import BaseRun
from torchrl_reg.lab.run.collection import truncate_episodes
from torchrl_reg.lab.run.divergence import FiniteWatch
from torchrl_reg.lab.run.files import partial_path, publish, write_error_advice
from torchrl_reg.lab.run.logger import RunLogger
from torchrl_reg.lab.run.packing import own_memory, pack_arrays, pack_tensordict, unpack_arrays, unpack_tensordict
from torchrl_reg.lab.run.replay_chunks import Chunk, ReplayChunks
from torchrl_reg.lab.run.streams import seed_global_generators, stream_seed
from torchrl_reg.lab.seeds.workers import current_worker

if TYPE_CHECKING:
    from torchrl.collectors import Collector


def restorable_part(env: EnvBase) -> Restorable | None:
    """The part of ``env`` that has ``snapshot()`` and ``restore()`` (:class:`torchrl_reg.envs.Restorable`), or None.

    It is the environment inside all transforms, or the gymnasium environment inside that.
    """
    innermost = _layers(env)[-1]
    for part in (innermost, getattr(innermost, "_env", None)):
        # The type: a wrapper forwards the attributes of other environments.
        if hasattr(type(part), "snapshot") and hasattr(type(part), "restore"):
            return part
    return None


def _layers(env: EnvBase) -> list[Any]:
    """The transforms around ``env``, outermost first, then the environment inside them."""
    layers = []
    while isinstance(env, TransformedEnv):
        layers.append(env.transform)
        env = env.base_env
    return [*layers, env]


class EnvironmentState:
    """The state of a collector and its environments, as a component of a checkpoint.

    Args:
        collector: the collector of the run; its environments have been reset.

    Attributes:
        is_transparent: True if the environments can be restored. If not, the caller ends all episodes at every
            checkpoint, so that a resumed run and an uninterrupted one start the same episodes.
        is_restored: False if loaded environments did not reach their state (this machine computes them differently);
            the caller resets them.
    """

    def __init__(self, collector: Collector | FastCollector) -> None:
        self._collector: Any = collector
        self._layers = _layers(collector.env)  # a closed collector has none
        self._part = restorable_part(collector.env)
        self.is_transparent = self._part is not None
        self.is_restored = True
        self.count = max(1, collector.env.batch_size.numel())

    def restart(self, seed: int) -> None:
        """Seeds all environments with ``seed`` and resets them."""
        self._collector.env.set_seed(seed)
        self._collector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state; for a closed collector only that of its transforms."""
        collector = self._collector
        state: dict[str, Any] = {"layers": [layer.state_dict() for layer in self._layers]}
        if collector.track_traj_ids:
            state["trajectories"] = collector._traj_pool.state_dict()
        if self._part is not None and not collector.closed:
            state["environments"] = pack_arrays(self._part.snapshot())
            state["carried"] = pack_tensordict(collector._carrier)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        collector = self._collector
        for layer, layer_state in zip(self._layers, state["layers"], strict=True):
            layer.load_state_dict(layer_state)
        if collector.track_traj_ids:
            collector._traj_pool.load_state_dict(state["trajectories"])
        if self._part is None or "environments" not in state:
            return
        self.is_restored = self._part.restore(unpack_arrays(state["environments"]))
        carried, fresh = unpack_tensordict(state["carried"]), collector._carrier
        for key, value in fresh.items(include_nested=True, leaves_only=True):
            carried.set(key, carried.get(key).to(value.device))
        collector._carrier = carried if fresh.device is None else carried.to(fresh.device)


class GeneratorStates:
    """The states of the global generators and of ``named`` ones, as a component of a checkpoint.

    With another number of CUDA devices than before, their generators are left as they are.
    """

    def __init__(self, **named: torch.Generator) -> None:
        self._named = named

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": pack_arrays(np.random.get_state(legacy=False)),
            "python": random.getstate(),
            "named": {name: generator.get_state() for name, generator in self._named.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(unpack_arrays(state["numpy"]))
        random.setstate(state["python"])
        for name, generator in self._named.items():
            generator.set_state(state["named"][name])


MAX_KEPT = 2
_PREFIX = "checkpoint"
# Errors from reading a damaged archive; TorchRL's are RuntimeErrors.
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError)


class CheckpointFolder:
    """Writes, verifies, loads and prunes the checkpoints of one run.

    Args:
        folder: the folder of the checkpoints, created on the first save.
        components: the contents of a checkpoint by name, without the replay buffer; each has ``state_dict`` and
            ``load_state_dict``. The last is restored after all others and the replay buffer.
        replay: the rows of the replay buffer, if the run has one.
    """

    def __init__(self, folder: Path, components: Mapping[str, Any], replay: ReplayChunks | None = None) -> None:
        self.folder = folder
        self.components = dict(components)
        self.replay = replay

    def save(self, frames: int, *, with_replay: bool = True) -> Path:
        """Writes the state at ``frames`` and prunes all but the last ``MAX_KEPT`` checkpoints.

        Raises:
            UserError: the disk is full, or the folder cannot be written; earlier checkpoints are untouched.
        """
        states = {name: own_memory(part.state_dict()) for name, part in self.components.items()}
        path = self.folder / f"{_PREFIX}-{frames:012d}.torchrl"
        try:
            self.folder.mkdir(exist_ok=True)
            if self.replay is not None and with_replay:
                states["replay"] = self.replay.save()
            chunks = states.get("replay", {"chunks": []})["chunks"]
            parts = {name: {"state_dict": lambda state=state: state} for name, state in states.items()}
            _archive(parts).save(partial_path(path), metadata={"frames": frames, "replay": chunks})
            publish(partial_path(path), path)
            self._prune()
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
            self.remove_partial_files()
            raise UserError(
                f"The checkpoint at frame {frames} could not be written to {self.folder} ({first_line(error)}); "
                f"{write_error_advice(error, self.folder.parent)}."
            ) from error
        return path

    def load_latest(self) -> int | None:
        """Restores the newest checkpoint and returns its frames; None when there is none.

        Raises:
            UserError: the newest one is damaged.
        """
        self.remove_partial_files()
        path = self.newest()
        if path is None:
            return None
        self._check(path)
        parts = {name: {"load_state_dict": part.load_state_dict} for name, part in self.components.items()}
        manifest, last = Checkpoint.manifest(path), list(parts)[-1]
        if "replay" in manifest["components"] and self.replay is not None:
            parts["replay"] = {"load_state_dict": self.replay.load}
        archive = _archive(parts)
        try:
            for names in (parts.keys() - {last}, {last}):  # TorchRL restores in alphabetical order
                archive.load(path, components=names, map_location="cpu")
        except TorchRLCheckpointError as error:
            advice = f"run the version that wrote it, or delete {self.folder} to start from the beginning."
            raise UserError(f"{path} does not match this program ({first_line(error)}); {advice}") from error
        return manifest["metadata"]["frames"]

    def frames(self) -> set[int]:
        """The frames from which this run can resume: its checkpoints, and 0 if none has been pruned yet."""
        found = {_frames(path) for path in self._paths()}
        return found | {0} if len(found) < MAX_KEPT else found

    def go_back(self, frames: int) -> None:
        """Deletes the checkpoints past ``frames``."""
        for path in self._paths():
            if _frames(path) > frames:
                path.unlink()

    def newest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        return next(reversed(self._paths()), None)

    def keep_only_last(self) -> None:
        """Reduces a finished run to its last archive, without the replay buffer."""
        for path in self._paths()[:-1]:
            path.unlink()
        if self.replay is not None:
            shutil.rmtree(self.replay.folder, ignore_errors=True)

    def remove_partial_files(self) -> None:
        """Deletes the temporary files of a killed or failed save."""
        for path in [*self.folder.glob(".*"), *self.folder.glob("*/.*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """All checkpoints, oldest first, damaged ones included."""
        return sorted(self.folder.glob(f"{_PREFIX}-*.torchrl"))

    def _prune(self) -> None:
        for path in self._paths()[:-MAX_KEPT]:
            path.unlink()
        if self.replay is not None:
            self.replay.keep_only([chunk for path in self._paths() for chunk in _chunks(path)])

    def _damage(self, path: Path) -> str | None:
        """The damage to ``path``, or None; verifies every checksum of every file."""
        try:
            with zipfile.ZipFile(path) as archive:
                member = archive.testzip()
            if member is not None:
                return f"checksum of {member}"
            chunk = self.replay.damaged(_chunks(path)) if self.replay is not None else None
        except _UNREADABLE as error:
            return first_line(error)
        return None if chunk is None else f"its replay file {chunk} is missing or damaged"

    def _check(self, newest: Path) -> None:
        """Raises ``UserError`` if ``newest`` is damaged."""
        reason = self._damage(newest)
        if reason is None:
            return
        intact = next((p for p in reversed(self._paths()[:-1]) if self._damage(p) is None), None)
        if intact is None:
            advice = f"and no earlier one is intact: delete {self.folder} and run the same command to start from the"
            raise UserError(f"Checkpoint {newest} is damaged ({reason}) {advice} beginning.")
        advice = f"but {intact} is intact: delete {newest} and run the same command to continue from the earlier one."
        raise UserError(f"Checkpoint {newest} is damaged ({reason}), {advice}")


def last_checkpoint(folder: Path) -> int:
    """The frames of the newest checkpoint in ``folder``; 0 without one."""
    return max(map(_frames, folder.glob(f"{_PREFIX}-*.torchrl")), default=0)


def _archive(parts: Mapping[str, Mapping[str, Callable[..., object]]]) -> Checkpoint:
    """A TorchRL archive of ``parts``, each a dict of ``state_dict`` or ``load_state_dict``."""
    archive, adapter = Checkpoint(format="archive"), StateDictCheckpointAdapter(payload_format="torch")
    for name, methods in parts.items():
        archive.register(name, SimpleNamespace(**methods), adapter=adapter)
    return archive


def _chunks(path: Path) -> list[Chunk]:
    return Checkpoint.manifest(path)["metadata"]["replay"]


def _frames(path: Path) -> int:
    return int(path.stem.removeprefix(f"{_PREFIX}-"))


class Resumption:
    """Saves the state of a run, and restores it when the run resumes.

    Args:
        run: the run; its counters are part of a checkpoint.
        logger: its logger, which counts episodes ended by checkpoints.
        parts: everything that learns, counts or anneals, by name.
        replay: the replay buffer, if ``parts`` has one.
        environments: the training environments.

    Attributes:
        checkpoints: the checkpoints of the run folder.
        watch: stops a run whose numbers are not finite.
        ends_episodes: True if checkpoints end all episodes, because the environments' state cannot be stored.
    """

    def __init__(
        self,
        run: BaseRun,
        logger: RunLogger,
        parts: Mapping[str, Any],
        replay: TensorDictReplayBuffer | None,
        environments: EnvironmentState,
    ) -> None:
        self.watch = FiniteWatch(run.path, run.settings.on_nan)
        self.ends_episodes = not environments.is_transparent
        self._seed, self._logger, self._parts, self._replay = run.settings.seed, logger, parts, replay
        self._environments = environments
        components = {name: part for name, part in parts.items() if part is not replay}
        folder = run.path / "checkpoints"
        named, chunks = {}, None
        if replay is not None:  # "if replay" would be false for an empty buffer
            chunks = ReplayChunks(folder / "replay", replay)
            named["replay"] = replay._rng
        # The generators are restored last: restoring environments may draw from them.
        components |= {"run": run, "environments": environments, "generators": GeneratorStates(**named)}
        self.checkpoints = CheckpointFolder(folder, components, chunks)

    def load(self, processes: tuple[Any, ...] = ()) -> bool:
        """Loads the newest checkpoint; False without one.

        Seeds that have always run together (in the same ``processes``) load the newest they share.
        """
        worker = current_worker()
        if worker is not None:
            found = (processes, self.checkpoints.frames())
            self.checkpoints.go_back(worker.barrier("resume", found, _newest_of_all))
        resumed = self.checkpoints.load_latest() is not None
        if worker is not None:
            worker.prepare()
        return resumed

    def begin(self, frames: int, resumed: bool) -> None:
        """Seeds the streams of a new run; in a resumed run, restarts environments that could not be restored."""
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
            for part in self._parts.values():
                if hasattr(part, "truncate_episodes"):
                    part.truncate_episodes()
        self._restart_environments(frames)

    def truncate_episodes(self, batch: TensorDictBase) -> None:
        """Ends the episodes of ``batch``, the last before a checkpoint, if the environments cannot be stored."""
        if self.ends_episodes:
            self._logger.cut_episodes += truncate_episodes(batch)

    def save(self, frames: int) -> None:
        """Writes a checkpoint between two batches."""
        self._save(frames)
        if self.ends_episodes:
            self._restart_environments(frames)

    def finish(self, frames: int) -> None:
        """Writes the last checkpoint, without the replay buffer, and deletes the others."""
        self._save(frames, with_replay=False)
        wait_for_all_seeds()  # else a kill could leave seeds without a common checkpoint
        self.checkpoints.keep_only_last()

    def check_finite(self, frames: int, row: Mapping[str, Any], *, can_go_on: bool = True) -> bool:
        """True if the means in ``row`` and all trained tensors are finite.

        Raises:
            UserError: they are not, and ``run.on_nan`` is ``"stop"`` or the run cannot go on.
        """
        optimizers = [part for part in self._parts.values() if isinstance(part, torch.optim.Optimizer)]
        return self.watch.check_finite(frames, row, optimizers, self.checkpoints.newest(), can_go_on=can_go_on)

    def _save(self, frames: int, *, with_replay: bool = True) -> None:
        """Writes a checkpoint unless the state is not finite: the last good one stays."""
        wait_for_all_seeds()  # so that they always have a checkpoint in common
        if self.check_finite(frames, {}):
            self.checkpoints.save(frames, with_replay=with_replay)

    def _restart_environments(self, frames: int) -> None:
        self._environments.restart(stream_seed(self._seed, "train_env", frames))


def wait_for_all_seeds() -> None:
    """Waits until all seeds of this process have reached this call; restores this seed's state of ``random``."""
    if (worker := current_worker()) is not None:
        worker.barrier("checkpoint", None, list)


def _newest_of_all(found: Sequence[tuple[tuple[Any, ...], set[int]]]) -> list[int]:
    """By seed, the newest frames that all with the same processes have; without common ones, its own newest.

    A seed that joins others later must not take them back to frame 0, nor one that failed long ago.
    """
    together: dict[tuple[Any, ...], list[set[int]]] = {}
    for processes, frames in found:
        together.setdefault(processes, []).append(frames)
    common = {processes: set.intersection(*of) for processes, of in together.items()}
    return [max(common[processes] or frames) for processes, frames in found]
