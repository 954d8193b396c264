"""Replay: fast storage and sampling of transitions, prioritized sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

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

# Uniform minibatches gathered by one indexing operation, at an eighth of the cost of separate ones for small rows.
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
    """A replay buffer of ``capacity`` transitions with a separate random generator, seeded by the run.

    Transitions are stored on ``device``, or in a ``storage`` of the same capacity. Samplers of trajectories need a
    two-dimensional storage, or ``run.collect(track_trajectories=True)``. Observations that stack ``frame_stack`` > 1
    images are stored one image at a time (:class:`FrameStackStorage`), and must be written in order of time, all
    ``num_envs`` environments at each step.

    Raises:
        UserError: a capacity below a minibatch or two stacks per environment, or other than that of the storage.
    """
    require(capacity >= batch_size, "algo.replay_capacity", f"at least {batch_size}", capacity)
    if frame_stack > 1:
        minimum = 2 * frame_stack * num_envs
        require(
            capacity >= minimum, "algo.replay_capacity", f"at least 2 * frame_stack * num_envs = {minimum}", capacity
        )
        capacity -= capacity % num_envs
        storage = FrameStackStorage(capacity, stack=frame_stack, num_envs=num_envs, device=device)
    elif storage is None:
        storage = TransitionStorage(capacity, device=device)
    require(storage.max_size == capacity, "algo.replay_capacity", f"that of its storage, {storage.max_size}", capacity)
    return TensorDictReplayBuffer(
        storage=storage,
        sampler=sampler,
        transform=transform,
        batch_size=batch_size,
        generator=torch.Generator(storage.device),
    )


def draw_minibatches(replay: TensorDictReplayBuffer, count: int) -> Iterator[TensorDictBase]:
    """Yields ``count`` minibatches of ``replay.batch_size``, distributed like ``count`` separate samples.

    Uniform samples do not depend on the updates in between, so several are gathered at once. Other samplers draw one
    minibatch at a time, after the priority update of the previous one.
    """
    size = replay.batch_size
    if type(replay.sampler) is StratifiedSampler and replay.storage.ndim == 1 and not replay._transform:
        yield from (_prioritized(replay, size) for _ in range(count))
        return
    if type(replay.sampler) is not RandomSampler or replay.storage.ndim > 1:
        for _ in range(count):
            yield replay.sample()
        return
    replay._warned_batch_size_conflict = True  # suppresses a warning about the other batch size
    for start in range(0, count, MINIBATCHES_PER_GATHER):
        minibatches = min(MINIBATCHES_PER_GATHER, count - start)
        yield from _split(replay.sample(minibatches * size), size)


def _prioritized(replay: TensorDictReplayBuffer, size: int) -> TensorDictBase:
    """``replay.sample()`` without locks, transforms and copies: 100 us faster."""
    index, info = replay.sampler.sample(replay.storage, size)
    rows = replay.storage.get(index)
    entries = {**dict(rows.items()), "index": index, **info}
    return unchecked_tensordict(entries, list(rows.batch_size), device=rows.device)


def store(replay: TensorDictReplayBuffer, rows: TensorDictBase) -> None:
    """``replay.extend(rows)``, about 35 us faster: TorchRL copies the rows for transforms even without any."""
    if replay._transform or fast_get(rows, replay.priority_key) is not None:
        replay.extend(rows)
    else:
        replay._extend(rows)


def _split(rows: TensorDictBase, size: int) -> list[TensorDictBase]:
    """``rows.split(size)`` into pieces of equal size, without the checks of TensorDict's constructor."""
    if len(rows) == size:
        return [rows]
    sizes = [size] * (len(rows) // size)
    pieces: list[dict[str, Any]] = [{} for _ in sizes]
    for name, value in rows.items():
        parts = value.split_with_sizes(sizes) if isinstance(value, Tensor) else _split(value, size)
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


def _entries(batch: TensorDictBase, keys: Iterable[NestedKey], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """``change`` of the entries ``keys`` present in ``batch``, as nested dictionaries."""
    entries: dict[str, Any] = {}
    for key in keys:
        value = fast_get(batch, key)
        if value is None:
            continue
        *path, name = (key,) if isinstance(key, str) else key
        parent = entries
        for part in path:
            parent = parent.setdefault(part, {})
        parent[name] = change(value)
    return entries


class TransitionStorage(LazyTensorStorage):
    """A faster :class:`~torchrl.data.LazyTensorStorage` with the same results.

    Rows at a vector of indices are gathered with ``index_select``, 8 times as fast as indexing on images. Consecutive
    rows, as written by a round-robin writer, are copied as slices. TorchRL handles all other cases.

    >>> from torchrl.data import TensorDictReplayBuffer
    >>> replay = TensorDictReplayBuffer(storage=TransitionStorage(100), batch_size=4)
    >>> _ = replay.extend(TensorDict({"reward": torch.arange(8.0), "next": {"done": torch.zeros(8)}}, [8]))
    >>> replay.sample()["reward"].shape, replay[torch.tensor([5, 2])]["reward"].tolist()
    (torch.Size([4]), [5.0, 2.0])
    """

    def get(self, index: Any) -> Any:
        rows = self._storage
        is_vector = isinstance(index, Tensor) and index.dtype == torch.long and index.ndim == 1 and index.numel()
        if not (is_vector and self.ndim == 1 and isinstance(rows, TensorDict)):
            return super().get(index)
        # index_select would read unwritten rows, and refuses negative indices.
        if not index.is_cuda:
            first, last = index.aminmax()
            if first < 0 or last >= len(self):
                return super().get(index)
        return _gather(rows, index)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        pairs = _pairs(self._storage, data) if self.initialized and set_cursor and self.ndim == 1 else None
        slices = [] if pairs is None else self._slices(cursor)
        if pairs is None or not slices:
            return super().set(cursor, data, set_cursor=set_cursor)
        # As TorchRL's method, without its dispatch on types of data and indices.
        self._set_last_cursor(cursor)
        self._get_new_len(data, cursor)
        for stored, value in pairs:
            for rows, source in slices:
                stored[rows] = value if len(slices) == 1 else value[source]
        self._bump_mutation_revision()

    def _slices(self, cursor: Any) -> list[tuple[slice, slice]]:
        """``cursor`` as one or two slices of rows, each with its slice of the data; empty if not consecutive."""
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
    """Pairs of tensors of ``rows`` and ``data``; None unless both are TensorDicts with the same keys and shapes."""
    if type(rows) is not TensorDict or type(data) is not TensorDict or rows.keys() != data.keys():
        return None
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, stored in rows.items():
        value = fast_get(data, name)
        if not isinstance(stored, Tensor):
            nested = _pairs(stored, value)
            if nested is None:
                return None
            pairs += nested
        elif isinstance(value, Tensor) and value.shape[1:] == stored.shape[1:]:
            pairs.append((stored, value))
        else:
            return None
    return pairs


def _gather(rows: TensorDictBase, index: Tensor) -> TensorDict:
    entries: dict[str, Any] = {}
    for name, value in rows.items():
        entries[name] = value.index_select(0, index) if isinstance(value, Tensor) else _gather(value, index)
    return unchecked_tensordict(entries, [len(index), *rows.batch_size[1:]], device=rows.device)


class StratifiedSampler(PrioritizedSampler):
    r"""Draws row i with probability :math:`P_i \propto (p_i + \epsilon)^\alpha`, one from each of B equal strata.

    Importance weights are :math:`(N P_i)^{-\beta}` divided by the largest of the minibatch (TorchRL: of the buffer).
    Up to this factor, the mean update is that of uniform sampling at :math:`\beta = 1`, and weighted by
    :math:`p^{\alpha (1 - \beta)}` for smaller :math:`\beta`. New rows get the largest priority so far. Compatible with
    TorchRL's ``PrioritizedSampler`` in state, files and methods, and 3 times as fast; the trees are on the CPU.

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
        # NumPy is 10 times as fast as torch on a minibatch of numbers.
        places = torch.rand(batch_size, generator=self._rng).numpy() + np.arange(batch_size, dtype=np.float32)
        places *= self._sum_tree.query(0, len(storage)) / batch_size
        index = np.minimum(self._sum_tree.scan_lower_bound(places), len(storage) - 1)
        masses = self._sum_tree[index]
        if not masses.all():  # rounding selected a row without mass
            return super().sample(storage, batch_size)  # type: ignore[return-value]
        weight = (masses / masses.min()) ** np.float32(-self._beta)
        rows, weights = torch.from_numpy(index), torch.from_numpy(weight)
        device = torch.device(getattr(storage, "device", "cpu"))
        return rows.to(device), {"priority_weight": weights.to(device)}

    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Sets the priorities of rows ``index [B]`` to ``priority [B]``; negative indices are skipped rows.

        Raises:
            ValueError: a priority that is not finite and >= 0, or an index beyond the capacity.
        """
        rows = torch.as_tensor(index).cpu().numpy()
        priorities = torch.as_tensor(priority).detach().reshape(-1).to("cpu", self.dtype).numpy()
        if priorities.size and not (priorities.min() >= 0 and priorities.max() < np.inf):
            bad = priorities[~((priorities >= 0) & (priorities < np.inf))][0]
            raise ValueError(f"priority must be finite and >= 0, got {bad}.")
        if rows.ndim < 2 and rows.size and rows.max() >= self._max_capacity:  # the C++ trees do not check bounds
            raise ValueError(f"index must be below the capacity of {self._max_capacity}, got {rows.max()}.")
        plain = isinstance(index, Tensor) and rows.ndim == 1 and isinstance(priority, Tensor)
        plain = plain and 0 < priorities.size == rows.size and not self._max_priority_within_buffer
        if not plain or rows.min() < 0:
            return super().update_priority(index, priority, storage=storage)
        position, largest = priorities.argmax(), self._max_priority[0]  # type: ignore[has-type]
        if largest is None or priorities[position] > largest:
            self._max_priority = (torch.tensor(priorities[position]), torch.tensor(rows[position]))  # type: ignore[assignment]
        masses = (priorities + np.float32(self._eps)) ** np.float32(self._alpha)
        self._sum_tree[rows] = masses
        self._min_tree[rows] = masses

    def mark_update(self, index: Any, *, storage: Any = None) -> None:
        """Sets the priorities of rows ``index [B]`` to the largest one so far."""
        if isinstance(index, Tensor) and index.ndim == 1:
            self.update_priority(index, torch.full((len(index),), float(self.default_priority)), storage=storage)
        else:
            super().mark_update(index, storage=storage)
