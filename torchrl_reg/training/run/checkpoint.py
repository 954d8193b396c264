"""Checkpoints of a run: one TorchRL archive each, beside the replay buffer's chunk files.

``checkpoints/checkpoint-<frames>.torchrl`` is a :class:`torchrl.checkpoint.Checkpoint` archive, so
``Checkpoint(loss=loss).load(path)`` restores trained weights without this module. An archive is
written under another name, synced and renamed: whatever has the name is whole.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter
from torchrl.checkpoint import CheckpointError as TorchRLCheckpointError

from torchrl_reg.training.errors import CheckpointError
from torchrl_reg.training.files import partial_path, publish, way_out
from torchrl_reg.training.loop.replay import ReplayChunks
from torchrl_reg.training.packing import own_memory

KEPT = 2
_PREFIX = "checkpoint"
# What reading a damaged archive raises, TorchRL's CheckpointError being a RuntimeError.
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError)


class CheckpointFolder:
    """Writes, verifies, loads and prunes the checkpoints of one run.

    Args:
        folder: where they are stored; created when needed.
        components: everything a checkpoint holds but the replay buffer, by name; each has
            ``state_dict`` and ``load_state_dict``. The last is restored after all others and the replay buffer.
        replay: the replay buffer's rows, if the run has one.
    """

    def __init__(self, folder: Path, components: Mapping[str, Any], replay: ReplayChunks | None = None) -> None:
        self.folder = folder
        self.components = dict(components)
        self.replay = replay

    def save(self, frames: int, *, with_replay: bool = True) -> Path:
        """Writes the state at ``frames`` and prunes all but the last ``KEPT`` checkpoints.

        Raises:
            CheckpointError: it could not be written (a full disk); earlier ones are untouched.
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
            raise CheckpointError(
                f"The checkpoint at frame {frames} could not be written to {self.folder} ({_first_line(error)}); "
                f"{way_out(error, self.folder.parent)}."
            ) from error
        return path

    def load_latest(self) -> int | None:
        """Restores the newest checkpoint and returns its frames; None when there is none.

        Raises:
            CheckpointError: the newest one is damaged; the message names it and what to do.
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
            for names in (parts.keys() - {last}, {last}):  # TorchRL would restore them in the order of their names
                archive.load(path, components=names, map_location="cpu")
        except TorchRLCheckpointError as error:
            advice = f"run the version that wrote it, or delete {self.folder} to start from the beginning."
            raise CheckpointError(f"{path} does not fit this program ({_first_line(error)}); {advice}") from error
        return manifest["metadata"]["frames"]

    def frames(self) -> set[int]:
        """Where this run can go on: at a checkpoint, or at 0 where none has been pruned yet."""
        found = {_frames(path) for path in self._paths()}
        return found | {0} if len(found) < KEPT else found

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
        """Deletes what a killed or failed save left behind."""
        for path in [*self.folder.glob(".*"), *self.folder.glob("*/.*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """All checkpoints, oldest first, readable or not."""
        return sorted(self.folder.glob(f"{_PREFIX}-*.torchrl"))

    def _prune(self) -> None:
        for path in self._paths()[:-KEPT]:
            path.unlink()
        if self.replay is not None:
            self.replay.keep_only([chunk for path in self._paths() for chunk in _chunks(path)])

    def _damage(self, path: Path) -> str | None:
        """Why ``path`` cannot be trusted, or None: every checksum of every file is verified."""
        try:
            with zipfile.ZipFile(path) as archive:
                member = archive.testzip()
            if member is not None:
                return f"checksum of {member}"
            chunk = self.replay.damaged(_chunks(path)) if self.replay is not None else None
        except _UNREADABLE as error:
            return _first_line(error)
        return None if chunk is None else f"its replay file {chunk} is missing or damaged"

    def _check(self, newest: Path) -> None:
        """Raises ``CheckpointError`` if ``newest`` is damaged."""
        reason = self._damage(newest)
        if reason is None:
            return
        intact = next((p for p in reversed(self._paths()[:-1]) if self._damage(p) is None), None)
        if intact is None:
            advice = f"and no earlier one is intact: delete {self.folder} and run the same command to start from the"
            raise CheckpointError(f"Checkpoint {newest} is damaged ({reason}) {advice} beginning.")
        advice = f"but {intact} is intact: delete {newest} and run the same command to continue from the earlier one."
        raise CheckpointError(f"Checkpoint {newest} is damaged ({reason}), {advice}")


def last_checkpoint(folder: Path) -> int:
    """The frame of the newest checkpoint in ``folder``; 0 without one."""
    return max(map(_frames, folder.glob(f"{_PREFIX}-*.torchrl")), default=0)


def _archive(parts: Mapping[str, Mapping[str, Any]]) -> Checkpoint:
    """TorchRL's archive of ``parts``, each given by its ``state_dict`` or ``load_state_dict``."""
    archive, adapter = Checkpoint(format="archive"), StateDictCheckpointAdapter(payload_format="torch")
    for name, methods in parts.items():
        archive.register(name, SimpleNamespace(**methods), adapter=adapter)
    return archive


def _chunks(path: Path) -> list[Any]:
    return Checkpoint.manifest(path)["metadata"]["replay"]


def _frames(path: Path) -> int:
    return int(path.stem.removeprefix(f"{_PREFIX}-"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
