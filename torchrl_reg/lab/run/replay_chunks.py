"""Replay buffers in checkpoints: files of the rows written since the previous one, and the state of the sampler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler, TensorStorage

from torchrl_reg.lab.run.files import partial_path, publish

# Maximum bytes of transitions in a chunk file, to bound the memory of writing a checkpoint.
CHUNK_BYTES = 256 * 2**20


class Chunk(TypedDict):
    """A file with the rows ``start`` to ``stop``, numbered in order of writing."""

    file: str
    start: int
    stop: int
    sha256: str


@runtime_checkable
class StorageInTime(Protocol):
    """A storage of rows in order of time that derives part of them from where episodes start (frame stacks)."""

    def starts_between(self, start: int, stop: int) -> dict[str, Any]:
        """Episode starts of the rows numbered ``start`` to ``stop``, for :meth:`load_rows`."""

    def load_rows(self, start: int, rows: TensorDictBase, starts: dict[str, Any]) -> None:
        """Writes ``rows`` numbered from ``start``, with their episode starts."""


class ReplayChunks:
    """Saves a replay buffer incrementally, in files of the rows written since the last save.

    Rows do not change once written (priorities are part of the sampler), so a file stays valid until the ring has
    overwritten all its rows. Rows are numbered along the first dimension of the storage.
    """

    def __init__(self, folder: Path, replay: TensorDictReplayBuffer) -> None:
        self.folder = folder
        self.replay = replay
        self._chunks: list[Chunk] = []

    def save(self) -> dict[str, Any]:
        """Writes the new rows, and returns the state for :meth:`load`."""
        written = self.replay.write_count
        if written:
            capacity = self._storage().shape[0]
            saved = self._chunks[-1]["stop"] if self._chunks else 0
            self.folder.mkdir(exist_ok=True)
            for start, stop in self._pieces(max(saved, written - capacity), written):
                self._chunks.append(self._write(start, stop))
            self._chunks = [c for c in self._chunks if c["stop"] > written - capacity]
        return {
            "chunks": list(self._chunks),
            "sampler": _sampler_state(self.replay),
            "writer": self.replay.writer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Fills the empty buffer with the rows at the time of :meth:`save`."""
        self._chunks = list(state["chunks"])
        storage = self.replay.storage
        for chunk in self._chunks:
            content = torch.load(self.folder / chunk["file"], weights_only=True)
            batch = TensorDict(dict(content["entries"]), content["batch_size"])
            # Includes rows that had been overwritten; a later chunk overwrites them again.
            if isinstance(storage, StorageInTime):
                storage.load_rows(chunk["start"], batch, content["starts"])
                continue
            capacity = storage._max_size_along_dim0(batched_data=batch)
            storage.set(torch.arange(chunk["start"], chunk["stop"]) % capacity, batch)
        self.replay.writer.load_state_dict(state["writer"])
        _load_sampler_state(self.replay, state["sampler"])

    def damaged(self, chunks: list[Chunk]) -> Path | None:
        """The file of the first of ``chunks`` that is missing or has another checksum; None if all are intact."""
        for chunk in chunks:
            path = self.folder / chunk["file"]
            if not path.exists() or _digest(path) != chunk["sha256"]:
                return path
        return None

    def keep_only(self, chunks: list[Chunk]) -> None:
        """Deletes all files in the folder except those of ``chunks``."""
        names = {chunk["file"] for chunk in chunks}
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in names:
                path.unlink()

    def _storage(self) -> TensorDictBase:
        storage = self.replay.storage
        assert isinstance(storage, TensorStorage)
        return storage._storage

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Splits ``[start, stop)`` into pieces of up to ``CHUNK_BYTES`` that do not cross the end of the ring."""
        storage = self._storage()
        capacity = storage.shape[0]
        row_bytes = max(1, storage.bytes() // capacity)
        max_rows = max(1, CHUNK_BYTES // row_bytes)
        while start < stop:
            end = min(stop, start + max_rows, start - start % capacity + capacity)
            yield start, end
            start = end

    def _write(self, start: int, stop: int) -> Chunk:
        storage = self._storage()
        first = start % storage.shape[0]
        rows = storage[first : first + stop - start]
        # Cloned, because torch.save of a view writes the whole buffer.
        entries = [(key, value.cpu().clone()) for key, value in rows.items(include_nested=True, leaves_only=True)]
        path = self.folder / f"{start:012d}-{stop:012d}.pt"
        partial = partial_path(path)
        content: dict[str, Any] = {"batch_size": rows.batch_size, "entries": entries}
        if isinstance(self.replay.storage, StorageInTime):
            content["starts"] = self.replay.storage.starts_between(start, stop)
        torch.save(content, partial)
        digest = _digest(partial)
        publish(partial, path)
        return {"file": path.name, "start": start, "stop": stop, "sha256": digest}


def _sampler_state(replay: TensorDictReplayBuffer) -> dict[str, Any]:
    """The state of the sampler as tensors: TorchRL's contains C++ trees, which need pickle."""
    state = dict(replay.sampler.state_dict())
    if isinstance(replay.sampler, PrioritizedSampler):
        leaves = torch.arange(replay.sampler.max_size)
        # An unwritten leaf is zero in the sum tree and infinite in the min tree.
        state["_sum_tree"] = torch.as_tensor(state["_sum_tree"][leaves]).clone()
        del state["_min_tree"]
    return state


def _load_sampler_state(replay: TensorDictReplayBuffer, state: Mapping[str, Any]) -> None:
    state = dict(state)
    if isinstance(replay.sampler, PrioritizedSampler):
        trees = replay.sampler.state_dict()
        leaves = state["_sum_tree"]
        written = leaves.nonzero().squeeze(-1)
        if written.numel():
            trees["_sum_tree"][written] = leaves[written]
            trees["_min_tree"][written] = leaves[written]
        state["_sum_tree"], state["_min_tree"] = trees["_sum_tree"], trees["_min_tree"]
    replay.sampler.load_state_dict(state)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
