"""Replay buffers that can be saved incrementally, and minibatches drawn several at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler, RandomSampler, TensorStorage

from torchrl_reg.training.files import partial_path, publish
from torchrl_reg.training.loop.frame_stack import FrameStackStorage

# Most bytes of transitions in a chunk file: bounds the memory a checkpoint takes.
CHUNK_BYTES = 256 * 2**20
# Minibatches gathered by one indexing operation (each at an eighth of the cost, on small networks).
MINIBATCHES_PER_GATHER = 16


def draw_minibatches(replay: TensorDictReplayBuffer, count: int) -> Iterator[TensorDictBase]:
    """Yields ``count`` minibatches of ``replay.batch_size``, distributed as ``count`` separate samples.

    Uniform samples do not depend on what is learned in between, so many are gathered at once.
    Any other sampler is asked each time, after the priority update of the previous minibatch.
    """
    size = replay.batch_size
    if type(replay.sampler) is not RandomSampler or replay.storage.ndim > 1:
        for _ in range(count):
            yield replay.sample()
        return
    replay._warned_batch_size_conflict = True  # else it warns that this is not its batch size
    for start in range(0, count, MINIBATCHES_PER_GATHER):
        together = min(MINIBATCHES_PER_GATHER, count - start)
        yield from replay.sample(together * size).split(size)


def rows_in_time(batch: TensorDictBase, keys: Iterable[NestedKey]) -> TensorDictBase:
    """The entries ``keys`` present in ``batch [N, T]``, as rows ``[T * N]``: all environments, step by step."""
    return batch.select(*keys, strict=False).transpose(0, 1).reshape(-1)


class Chunk(TypedDict):
    """One file of transitions: ``start`` to ``stop`` in order of writing since the run began."""

    file: str
    start: int
    stop: int
    crc32: int


class ReplayChunks:
    """Saves a replay buffer as files of the rows written since the last save.

    A row never changes once written (priorities live in the sampler), so old files stay valid
    until the ring has overwritten all their rows. Rows are counted along the first dimension
    of the storage.
    """

    def __init__(self, folder: Path, replay: TensorDictReplayBuffer) -> None:
        self.folder = folder
        self.replay = replay
        self._chunks: list[Chunk] = []

    def save(self) -> dict[str, Any]:
        """Writes the new rows and returns what :meth:`load` needs to find all of them."""
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
        """Fills the empty buffer with the rows it held when ``state`` was saved."""
        self._chunks = list(state["chunks"])
        storage = self.replay.storage
        for chunk in self._chunks:
            content = torch.load(self.folder / chunk["file"], weights_only=True)
            batch = TensorDict(dict(content["entries"]), content["batch_size"])
            # Rows overwritten since then are loaded too; a later chunk overwrites them again.
            if isinstance(storage, FrameStackStorage):
                storage.load_rows(chunk["start"], batch, content["starts"])
                continue
            capacity = storage._max_size_along_dim0(batched_data=batch)
            storage.set(torch.arange(chunk["start"], chunk["stop"]) % capacity, batch)
        self.replay.writer.load_state_dict(state["writer"])
        _load_sampler_state(self.replay, state["sampler"])

    def damaged(self, chunks: list[Chunk]) -> Path | None:
        """The first of ``chunks`` that is missing or does not hold what was written, if any."""
        for chunk in chunks:
            path = self.folder / chunk["file"]
            if not path.exists() or _crc32(path) != chunk["crc32"]:
                return path
        return None

    def keep_only(self, chunks: list[Chunk]) -> None:
        """Deletes every file of the folder that is not among ``chunks``."""
        kept = {chunk["file"] for chunk in chunks}
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in kept:
                path.unlink()

    def _storage(self) -> TensorDictBase:
        storage = self.replay.storage
        assert isinstance(storage, TensorStorage)
        return storage._storage

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Splits ``[start, stop)`` where the ring wraps, into pieces of at most ``CHUNK_BYTES``."""
        storage = self._storage()
        capacity = storage.shape[0]
        row_bytes = max(1, storage.bytes() // capacity)
        most = max(1, CHUNK_BYTES // row_bytes)
        while start < stop:
            end = min(stop, start + most, start - start % capacity + capacity)
            yield start, end
            start = end

    def _write(self, start: int, stop: int) -> Chunk:
        storage = self._storage()
        first = start % storage.shape[0]
        rows = storage[first : first + stop - start]
        # Copied, because saving a view would write the whole buffer.
        entries = [(key, value.cpu().clone()) for key, value in rows.items(include_nested=True, leaves_only=True)]
        path = self.folder / f"{start:012d}-{stop:012d}.pt"
        partial = partial_path(path)
        content: dict[str, Any] = {"batch_size": rows.batch_size, "entries": entries}
        if isinstance(self.replay.storage, FrameStackStorage):
            content["starts"] = self.replay.storage.starts_between(start, stop)
        torch.save(content, partial)
        crc32 = _crc32(partial)
        publish(partial, path)
        return {"file": path.name, "start": start, "stop": stop, "crc32": crc32}


def _sampler_state(replay: TensorDictReplayBuffer) -> dict[str, Any]:
    """The sampler's state as plain tensors; its own holds C++ trees, which need pickle."""
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


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
