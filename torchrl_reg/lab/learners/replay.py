"""Replay: rows stored and read fast, uniform and prioritized sampling, files of the rows that are new."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler, RandomSampler, Sampler, TensorStorage
from torchrl.data.replay_buffers.storages import Storage
from torchrl.envs import Transform

from torchrl_reg.compat import fast_get, unchecked_tensordict
from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.frame_stack import FrameStackStorage
from torchrl_reg.lab.run.files import partial_path, publish

# Most bytes of transitions in a chunk file: bounds the memory a checkpoint takes.
CHUNK_BYTES = 256 * 2**20
# Minibatches gathered by one indexing operation (each at an eighth of the cost, on small networks).
MINIBATCHES_PER_GATHER = 16


def make_replay(
    capacity: int,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    storage: TensorStorage | None = None,
    frame_stack: int = 1,
    num_envs: int = 1,
    sampler: Sampler | None = None,
    transform: Transform | None = None,
) -> TensorDictReplayBuffer:
    """A replay buffer of ``capacity`` transitions with a random generator of its own, which a run seeds.

    They are kept on ``device``, or in a ``storage`` of that capacity. A sampler over trajectories needs a
    two-dimensional storage, or ``run.collect(track_trajectories=True)``. Observations that stack ``frame_stack`` > 1
    images are stored one image at a time (:class:`FrameStackStorage`): extend it with rows of ``num_envs`` environments
    in time order.

    Raises:
        UserError: a capacity that does not hold a minibatch or a stack, or is not that of the storage.
    """
    require(capacity >= batch_size, "replay capacity", f"at least {batch_size}", capacity)
    if frame_stack > 1:
        least = 2 * frame_stack * num_envs
        require(capacity >= least, "replay capacity", f"at least 2 * frame_stack * num_envs = {least}", capacity)
        capacity -= capacity % num_envs
        storage = FrameStackStorage(capacity, stack=frame_stack, num_envs=num_envs, device=device)
    elif storage is None:
        storage = TransitionStorage(capacity, device=device)
    require(storage.max_size == capacity, "replay capacity", f"that of its storage, {storage.max_size}", capacity)
    parts = {"storage": storage, "sampler": sampler, "transform": transform}
    return TensorDictReplayBuffer(**parts, batch_size=batch_size, generator=torch.Generator(storage.device))


def draw_minibatches(replay: TensorDictReplayBuffer, count: int) -> Iterator[TensorDictBase]:
    """Yields ``count`` minibatches of ``replay.batch_size``, distributed as ``count`` separate samples.

    Uniform samples do not depend on what is learned in between, so many are gathered at once.
    Any other sampler is asked each time, after the priority update of the previous minibatch.
    """
    size = replay.batch_size
    if type(replay.sampler) is StratifiedSampler and replay.storage.ndim == 1 and not replay._transform:
        yield from (_prioritized(replay, size) for _ in range(count))
        return
    if type(replay.sampler) is not RandomSampler or replay.storage.ndim > 1:
        for _ in range(count):
            yield replay.sample()
        return
    replay._warned_batch_size_conflict = True  # else it warns that this is not its batch size
    for start in range(0, count, MINIBATCHES_PER_GATHER):
        together = min(MINIBATCHES_PER_GATHER, count - start)
        yield from _split(replay.sample(together * size), size)


def _prioritized(replay: TensorDictReplayBuffer, size: int) -> TensorDictBase:
    """``replay.sample()`` without its locks, transforms and copies: 100 us less."""
    index, info = replay.sampler.sample(replay.storage, size)
    rows = replay.storage.get(index)
    found = {**dict(rows.items()), "index": index, **info}
    return unchecked_tensordict(found, list(rows.batch_size), device=rows.device)


def store(replay: TensorDictReplayBuffer, rows: TensorDictBase) -> None:
    """``replay.extend(rows)``, some 35 us faster: TorchRL copies rows for transforms even where there are none."""
    if replay._transform or fast_get(rows, replay.priority_key) is not None:
        replay.extend(rows)
    else:
        replay._extend(rows)


def _split(rows: TensorDictBase, size: int) -> list[TensorDictBase]:
    """``rows.split(size)`` into pieces of equal size, without TensorDict's checks of each piece."""
    if len(rows) == size:
        return [rows]
    sizes = [size] * (len(rows) // size)
    pieces: list[dict[str, Any]] = [{} for _ in sizes]
    for name, held in rows.items():
        parts = held.split_with_sizes(sizes) if isinstance(held, Tensor) else _split(held, size)
        for piece, part in zip(pieces, parts, strict=True):
            piece[name] = part
    return [unchecked_tensordict(piece, [size, *rows.batch_size[1:]], device=rows.device) for piece in pieces]


def select(batch: TensorDictBase, keys: Iterable[NestedKey]) -> TensorDict:
    """``batch.select(*keys, strict=False)`` of tensors, at a tenth of the cost."""
    return unchecked_tensordict(_entries(batch, keys, lambda value: value), batch.batch_size, device=batch.device)


def rows_in_time(batch: TensorDictBase, keys: Iterable[NestedKey]) -> TensorDictBase:
    """The entries ``keys`` present in ``batch [N, T]``, as rows ``[T * N]``: all environments, step by step."""
    rows = _entries(batch, keys, lambda value: value.transpose(0, 1).flatten(0, 1))
    return unchecked_tensordict(rows, [batch.numel()], device=batch.device)


def _entries(batch: TensorDictBase, keys: Iterable[NestedKey], change: Callable[[Tensor], Tensor]) -> dict[Any, Any]:
    """The changed entries ``keys`` of ``batch``, nested as there; without those that are absent."""
    found: dict[Any, Any] = {}
    for key in keys:
        value = fast_get(batch, key)
        if value is None:
            continue
        *path, name = (key,) if isinstance(key, str) else key
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[name] = change(value)
    return found


class TransitionStorage(LazyTensorStorage):
    """A :class:`~torchrl.data.LazyTensorStorage` with the same rows and answers, but faster.

    Rows at a vector of indices are gathered entry by entry with ``index_select``, which takes an eighth of the time of
    indexing on images; rows that follow each other, as a round-robin writer has them, are copied as slices. Everything
    else is left to TorchRL.

    >>> from torchrl.data import TensorDictReplayBuffer
    >>> replay = TensorDictReplayBuffer(storage=TransitionStorage(100), batch_size=4)
    >>> _ = replay.extend(TensorDict({"reward": torch.arange(8.0), "next": {"done": torch.zeros(8)}}, [8]))
    >>> replay.sample()["reward"].shape, replay[torch.tensor([5, 2])]["reward"].tolist()
    (torch.Size([4]), [5.0, 2.0])
    """

    def get(self, index: Any) -> Any:
        rows = self._storage
        vector = isinstance(index, Tensor) and index.dtype == torch.long and index.ndim == 1 and index.numel()
        if not (vector and self.ndim == 1 and isinstance(rows, TensorDict)):
            return super().get(index)
        # Rows that were not written yet have no answer, and a negative index counts from the last one that was.
        if not index.is_cuda:
            least, most = index.aminmax()
            if least < 0 or most >= len(self):
                return super().get(index)
        return _gathered(rows, index)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        pairs = _pairs(self._storage, data) if self.initialized and set_cursor and self.ndim == 1 else None
        slices = [] if pairs is None else self._slices(cursor)
        if pairs is None or not slices:
            return super().set(cursor, data, set_cursor=set_cursor)
        # What TorchRL's does, but for the search through every kind of data and of index.
        self._set_last_cursor(cursor)
        self._get_new_len(data, cursor)
        for held, given in pairs:
            for place, source in slices:
                held[place] = given if len(slices) == 1 else given[source]
        self._bump_mutation_revision()

    def _slices(self, cursor: Any) -> list[tuple[slice, slice]]:
        """The one or two slices that ``cursor`` is, each with that of the data; none if it is something else."""
        if not isinstance(cursor, Tensor) or cursor.is_cuda or cursor.ndim != 1 or not 0 < len(cursor) <= self.max_size:
            return []
        numbers = cursor.tolist()
        first, count = numbers[0], len(numbers)
        before_wrap = min(count, self.max_size - first)
        if numbers != [*range(first, first + before_wrap), *range(count - before_wrap)]:
            return []
        slices = [(slice(first, first + before_wrap), slice(before_wrap))]
        return slices if before_wrap == count else [*slices, (slice(count - before_wrap), slice(before_wrap, count))]


def _pairs(rows: Any, data: Any) -> list[tuple[Tensor, Tensor]] | None:
    """Each tensor of ``rows`` with that of ``data``; None unless both are plain dicts of the same names and shapes."""
    if type(rows) is not TensorDict or type(data) is not TensorDict or rows.keys() != data.keys():
        return None
    found: list[tuple[Tensor, Tensor]] = []
    for name, held in rows.items():
        given = fast_get(data, name)
        if not isinstance(held, Tensor):
            nested = _pairs(held, given)
            if nested is None:
                return None
            found += nested
        elif isinstance(given, Tensor) and given.shape[1:] == held.shape[1:]:
            found.append((held, given))
        else:
            return None
    return found


def _gathered(rows: TensorDictBase, index: Tensor) -> TensorDict:
    found: dict[str, Any] = {}
    for name, held in rows.items():
        found[name] = held.index_select(0, index) if isinstance(held, Tensor) else _gathered(held, index)
    return unchecked_tensordict(found, [len(index), *rows.batch_size[1:]], device=rows.device)


class Chunk(TypedDict):
    """One file of transitions: ``start`` to ``stop`` in order of writing since the run began."""

    file: str
    start: int
    stop: int
    sha256: str


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
            if not path.exists() or _digest(path) != chunk["sha256"]:
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
        digest = _digest(partial)
        publish(partial, path)
        return {"file": path.name, "start": start, "stop": stop, "sha256": digest}


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


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class StratifiedSampler(PrioritizedSampler):
    r"""Draws row i with probability :math:`P_i \propto (p_i + \epsilon)^\alpha`, one from each of B equal masses.

    Importance weights are :math:`(N P_i)^{-\beta}` over the largest of the minibatch (TorchRL: of the whole buffer),
    so that the mean update is that of uniform sampling at :math:`\beta = 1`, up to this factor, and follows
    :math:`p^{\alpha (1 - \beta)}` below. New rows get the largest priority seen so far. A third of the time of
    TorchRL's, whose state, files and methods it has; the trees are kept on the CPU.

    Args:
        max_capacity: rows of the storage.
        alpha: priority exponent >= 0, 0 is uniform. beta: importance exponent >= 0, 0 is no correction; assignable.
        eps: added to every priority.

    Shape: indices and ``priority_weight`` ``[B]``, a minibatch of B rows.

    Source: Schaul et al., "Prioritized Experience Replay", ICLR 2016, section 3.3 and appendix B.2.1.

    >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    >>> from tensordict import TensorDict
    >>> sampler = StratifiedSampler(100, alpha=0.5, beta=0.4)
    >>> replay = TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=sampler, batch_size=4)
    >>> _ = replay.extend(TensorDict({"reward": torch.arange(8.0)}, [8]))
    >>> replay.sample()["priority_weight"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, max_capacity: int, alpha: float, beta: float, eps: float = 1e-8) -> None:
        super().__init__(max_capacity, alpha, beta, eps, device="cpu")

    def sample(self, storage: Storage, batch_size: int) -> tuple[Any, dict[str, Tensor]]:
        """Indices ``[B]`` of rows and their ``priority_weight`` ``[B]``, in (0, 1]."""
        if storage.ndim > 1 or not len(storage):
            return super().sample(storage, batch_size)  # type: ignore[return-value]
        # NumPy on so few numbers: a tenth of the time of torch.
        places = torch.rand(batch_size, generator=self._rng).numpy() + np.arange(batch_size, dtype=np.float32)
        places *= self._sum_tree.query(0, len(storage)) / batch_size
        index = np.minimum(self._sum_tree.scan_lower_bound(places), len(storage) - 1)
        masses = self._sum_tree[index]
        if not masses.all():  # a rounding error put one on a row that has none
            return super().sample(storage, batch_size)  # type: ignore[return-value]
        weight = (masses / masses.min()) ** np.float32(-self._beta)
        rows, weights = torch.from_numpy(index), torch.from_numpy(weight)
        device = torch.device(getattr(storage, "device", "cpu"))
        return rows.to(device), {"priority_weight": weights.to(device)}

    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Gives rows ``index [B]`` the priorities ``priority [B]``; negative indices are rows that a writer left out.

        Raises:
            ValueError: a priority that is not finite and >= 0, or an index beyond the capacity.
        """
        rows = torch.as_tensor(index).cpu().numpy()
        given = torch.as_tensor(priority).detach().reshape(-1).to("cpu", self.dtype).numpy()
        if given.size and not (given.min() >= 0 and given.max() < np.inf):
            bad = given[~((given >= 0) & (given < np.inf))][0]
            raise ValueError(f"priority must be finite and >= 0, got {bad}.")
        if rows.ndim < 2 and rows.size and rows.max() >= self._max_capacity:  # the trees would write out of bounds
            raise ValueError(f"index must be below the capacity of {self._max_capacity}, got {rows.max()}.")
        plain = isinstance(index, Tensor) and rows.ndim == 1 and isinstance(priority, Tensor)
        plain = plain and 0 < given.size == rows.size and not self._max_priority_within_buffer
        if not plain or rows.min() < 0:
            return super().update_priority(index, priority, storage=storage)
        place, largest = given.argmax(), self._max_priority[0]  # type: ignore[has-type]
        if largest is None or given[place] > largest:
            self._max_priority = (torch.tensor(given[place]), torch.tensor(rows[place]))  # type: ignore[assignment]
        masses = (given + np.float32(self._eps)) ** np.float32(self._alpha)
        self._sum_tree[rows] = masses
        self._min_tree[rows] = masses

    def mark_update(self, index: Any, *, storage: Any = None) -> None:
        """Gives rows ``index [B]`` the largest priority seen so far."""
        if isinstance(index, Tensor) and index.ndim == 1:
            self.update_priority(index, torch.full((len(index),), float(self.default_priority)), storage=storage)
        else:
            super().mark_update(index, storage=storage)
