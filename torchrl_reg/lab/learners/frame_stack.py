"""Replay storage of single frames, from which stacked observations are rebuilt."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage
from torchrl.data.replay_buffers.checkpointers import TensorStorageCheckpointer

from torchrl_reg.lab.errors import require


class EpisodeStarts:
    """A queue of the first images ``[H, W]`` of episodes, each with the number of the episode's first row, ascending.

    Starts are numbered from the first one on, dropped ones included. The capacity doubles when it is full.

    Args:
        device: device of the images.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self._images: Tensor | None = None
        self._rows: deque[int] = deque()  # of the starts in memory
        self._first = 0  # number of the oldest start in memory

    @property
    def count(self) -> int:
        """Number of starts so far, dropped ones included."""
        return self._first + len(self._rows)

    def bytes(self) -> int:
        return 0 if self._images is None else self._images.nbytes

    def append(self, images: Tensor, rows: Sequence[int]) -> None:
        """Appends the starts ``images [E, H, W]`` of the rows numbered ``rows`` (ascending)."""
        if not len(rows):
            return
        self._reserve(len(self._rows) + len(rows), images)
        assert self._images is not None
        counts = torch.arange(self.count, self.count + len(rows), device=self._device)
        self._images.index_copy_(0, counts % len(self._images), images.to(self._device))
        self._rows.extend(rows)

    def drop_before(self, row: int) -> None:
        """Drops the starts of rows numbered below ``row``."""
        while self._rows and self._rows[0] < row:
            self._rows.popleft()
            self._first += 1

    def images(self, counts: Tensor) -> Tensor:
        """The images ``[B, H, W]`` of the starts numbered ``counts [B]``; arbitrary images for dropped ones."""
        assert self._images is not None
        return self._images.index_select(0, counts.long() % len(self._images))

    def between(self, start: int, stop: int) -> dict[str, Any]:
        """The starts of rows ``start`` to ``stop``, for :meth:`load`."""
        selected = [i for i, row in enumerate(self._rows) if start <= row < stop]
        rows = [self._rows[i] for i in selected]
        if not rows:
            return {"first": self.count, "rows": [], "images": None}
        counts = self._first + torch.tensor(selected, device=self._device)
        return {"first": int(counts[0]), "rows": rows, "images": self.images(counts).cpu()}

    def load(self, starts: Mapping[str, Any]) -> None:
        """Appends the starts returned by :meth:`between`, in order of rows."""
        if not self._rows:
            self._first = starts["first"]
        if starts["rows"]:
            self.append(starts["images"], starts["rows"])

    def _reserve(self, size: int, example: Tensor) -> None:
        capacity = 0 if self._images is None else len(self._images)
        if size <= capacity:
            return
        images = torch.empty(max(16, size, 2 * capacity), *example.shape[1:], dtype=example.dtype, device=self._device)
        if self._rows:
            counts = torch.arange(self._first, self.count, device=self._device)
            images.index_copy_(0, counts % len(images), self.images(counts))
        self._images = images


OBSERVATION, NEXT_OBSERVATION = "observation", ("next", "observation")
# Key of the entries that replace the two stacks of a row: frame [H, W], history and start.
STORED = "frame_stack"


class _Checkpointer(TensorStorageCheckpointer):
    """TorchRL's ``dumps`` and ``loads``, extended by the state outside of the rows."""

    def dumps(self, storage: Any, path: str | os.PathLike[str]) -> None:
        super().dumps(storage, path)
        torch.save(storage.counts(), Path(path) / "frame_stack.pt")

    def loads(self, storage: Any, path: str | os.PathLike[str]) -> None:
        super().loads(storage, path)
        storage.load_counts(torch.load(Path(path) / "frame_stack.pt", weights_only=True))


class FrameStackStorage(LazyTensorStorage):
    """A ring of transitions that stores one frame per row and rebuilds the stacks of images, bit for bit.

    A row stores the newest frame of its next observation, ``H * W`` bytes instead of ``2 * S * H * W`` for both stacks.
    Older frames are in earlier rows of the same environment, except the first frame of an episode
    (:class:`EpisodeStarts`). An observation must therefore equal the next observation of the step before, or start an
    episode with ``S - 1`` frames that are black or repeat the first one; :meth:`set` checks this.

    Batches must be written in order of time, all environments at each step, by a round-robin writer, as in the example.

    The two stacks of a sample share memory: do not write to them. In a full ring up to ``S * N`` of the oldest rows
    lack frames that have been overwritten; for such a row :meth:`get` returns the one ``S`` steps later in the same
    environment.

    Args:
        max_size: capacity in transitions, a multiple of ``num_envs`` and at least ``2 * S * N``.
        stack: ``S``, frames in an observation ``[S, H, W]`` (uint8, oldest first); at least 2.
        num_envs: ``N``, environments that step together.
        device: device of the rows.

    Raises:
        UserError: a bad argument.

    >>> from torchrl.data import TensorDictReplayBuffer
    >>> stacks = torch.arange(6, dtype=torch.uint8).expand(2, 6).unfold(1, 2, 1)[..., None, None]
    >>> batch = TensorDict({"observation": stacks[:, :-1], "next": {"observation": stacks[:, 1:]}}, [2, 4])
    >>> storage = FrameStackStorage(8, stack=2, num_envs=2)
    >>> replay = TensorDictReplayBuffer(storage=storage, batch_size=32)
    >>> rows = batch.transpose(0, 1).reshape(-1)
    >>> rows["observation"][:2, 0] = 0  # black before the first frame
    >>> indices = replay.extend(rows)
    >>> storage[3:5]["observation"].flatten(1).tolist()
    [[1, 2], [2, 3]]
    """

    _default_checkpointer = _Checkpointer

    def __init__(self, max_size: int, *, stack: int, num_envs: int, device: torch.device | str = "cpu") -> None:
        require(stack >= 2, "stack", "at least 2 frames", stack)
        require(num_envs >= 1, "num_envs", "at least 1", num_envs)
        min_size = 2 * stack * num_envs
        expected = f"a multiple of num_envs={num_envs} and at least 2 * stack * num_envs={min_size}"
        require(max_size % num_envs == 0 and max_size >= min_size, "max_size", expected, max_size)
        super().__init__(max_size, device=device)
        self.stack = stack
        self.num_envs = num_envs
        # Per history: distance in rows to each frame of both stacks, 0 for frames before the episode's first row.
        self._back = (_steps_back(stack) * num_envs).to(self.device)
        self._keys: list[Any] = []  # of entries other than the stacks, set by the first write
        self._written = 0  # rows so far, overwritten ones included
        self._starts = EpisodeStarts(self.device)

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Writes transitions ``[B]`` to the rows ``cursor``, which must follow the last row written.

        Raises:
            UserError: a batch that does not continue the transitions before.
        """
        self._check_images(data)
        self._check_cursor(cursor, len(data), set_cursor)
        rows, images, start_rows = self._to_rows(data.to(self.device))
        self._write(rows)
        self._starts.append(images, start_rows)
        self._starts.drop_before(self._written - self.max_size)

    def get(self, index: Any) -> TensorDictBase:
        """The transitions at ``index``, any index of a vector of length ``len(self)``, with their stacks.

        Raises:
            IndexError: a row that has not been written.
        """
        size = len(self)
        if not isinstance(index, Tensor) or index.dtype == torch.bool:
            index = torch.arange(size, device=self.device)[index]
        rows = index.reshape(-1).to(self.device, torch.long)
        if not rows.is_cuda and len(rows):
            first, last = rows.aminmax()
            if first < 0 or last >= size:
                raise IndexError(f"index must be in rows 0 to {size - 1}, got {first} to {last}.")
        rows = self._complete_rows(rows)
        frames = self._frames(rows)
        entries = {key: self._storage.get(key).index_select(0, rows) for key in self._keys}
        entries |= {OBSERVATION: frames[:, :-1], NEXT_OBSERVATION: frames[:, 1:]}
        transitions = TensorDict(entries, [len(rows)], device=self.device)
        return transitions if index.ndim == 1 else transitions.reshape(index.shape)

    def rows_returned(self, index: Tensor) -> Tensor:
        """The rows that :meth:`get` reads for ``index``: later ones where frames have been overwritten."""
        return self._complete_rows(index.to(self.device, torch.long))

    def __repr__(self) -> str:
        # The inherited method would rebuild all stacks.
        sizes = f"max_size={self.max_size}, stack={self.stack}, num_envs={self.num_envs}"
        return f"{type(self).__name__}({sizes}, len={len(self)}, device={self.device})"

    # ------------------------------------------------------------ saving

    def bytes(self) -> int:
        """Bytes of the rows and of the episode starts."""
        return (self._storage.bytes() if self.initialized else 0) + self._starts.bytes()

    def starts_between(self, start: int, stop: int) -> dict[str, Any]:
        """Episode starts of the rows numbered ``start`` to ``stop``, for :meth:`load_rows`."""
        return self._starts.between(start, stop)

    def load_rows(self, start: int, rows: TensorDictBase, starts: dict[str, Any]) -> None:
        """Writes ``rows`` in the layout of ``_storage``, numbered from ``start``, with their episode starts."""
        self._written = start
        self._write(rows)
        self._starts.load(starts)
        self._starts.drop_before(self._written - self.max_size)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"frame_stack": self.counts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._name_entries()
        self.load_counts(state_dict["frame_stack"])

    def counts(self) -> dict[str, Any]:
        """The state outside of the rows."""
        return {"written": self._written, "starts": self._starts.between(0, self._written)}

    def load_counts(self, counts: dict[str, Any]) -> None:
        self._starts.clear()
        self._written = counts["written"]
        self._starts.load(counts["starts"])

    def _empty(self) -> None:
        super()._empty()
        self._written = 0
        self._starts.clear()

    def _init_standard(self, data: TensorDictBase) -> None:
        super()._init_standard(data)
        self._name_entries()

    def _name_entries(self) -> None:
        keys = self._storage.keys(include_nested=True, leaves_only=True)
        self._keys = [key for key in keys if key[0] != STORED]

    # ------------------------------------------------------------ reading

    def _stored(self, name: str) -> Tensor:
        return self._storage.get((STORED, name))

    def _complete_rows(self, rows: Tensor) -> Tensor:
        """``rows [B]``, moved ``S`` steps on where the oldest frame has been overwritten."""
        if self._written <= self.max_size:
            return rows
        age = (self._written - 1 - rows) % self.max_size
        reach = self.stack * self.num_envs
        # Only on the CPU: on a GPU the check would wait for all work in the queue.
        if not rows.is_cuda and not (age >= self.max_size - reach).any():
            return rows
        known = self._stored("history")[rows] % (self.stack + 1)
        lost = known > (self.max_size - 1 - age) // self.num_envs
        return torch.where(lost, (rows + reach) % self.max_size, rows)

    def _frames(self, rows: Tensor) -> Tensor:
        """``[B, S + 1, H, W]``: the frames of the observation, then the newest frame of the next observation."""
        back = self._back[self._stored("history")[rows].long()]
        sources = (rows.unsqueeze(1) - back) % self.max_size
        # index_select is 8 times as fast as indexing on uint8 images.
        frames = self._stored("frame").index_select(0, sources.flatten()).unflatten(0, sources.shape)
        if frames.is_cuda:
            return self._with_starts(frames, rows)
        young = back[:, 0] == 0
        if young.any():
            few = young.nonzero().squeeze(1)
            frames.index_copy_(0, few, self._with_starts(frames.index_select(0, few), rows.index_select(0, few)))
        return frames

    def _with_starts(self, frames: Tensor, rows: Tensor) -> Tensor:
        """``frames [B, S + 1, H, W]`` with the episode's first frame filled in, black or repeated before it."""
        history = self._stored("history").index_select(0, rows)
        known, repeats = (history % (self.stack + 1)).unsqueeze(1), (history > self.stack).unsqueeze(1)
        back = torch.arange(self.stack, -1, -1, device=self.device)
        in_rows = back <= known
        shown = (back == known + 1) | (repeats & ~in_rows)
        first = self._starts.images(self._stored("start").index_select(0, rows)).unsqueeze(1)
        older = first * shown.to(torch.uint8)[..., None, None]
        return torch.where(in_rows[..., None, None], frames, older)

    # ------------------------------------------------------------ writing

    def _write(self, rows: TensorDictBase) -> None:
        first = self._written % self.max_size
        # Slices: writing uint8 images at an index tensor is 10 times as slow.
        before_wrap, after_wrap = rows[: self.max_size - first], rows[self.max_size - first :]
        super().set(slice(first, first + len(before_wrap)), before_wrap)
        if len(after_wrap):
            super().set(slice(0, len(after_wrap)), after_wrap)
        self._written += len(rows)

    def _check_images(self, data: TensorDictBase) -> None:
        for key in (OBSERVATION, NEXT_OBSERVATION):
            images = data.get(key, None)
            fits = images is not None and images.dtype == torch.uint8 and images.ndim == 4
            got = None if images is None else f"{images.dtype} {list(images.shape)}"
            require(fits and images.shape[1] == self.stack, f"{key}", f"uint8 [B, stack={self.stack}, H, W]", got)

    def _check_cursor(self, cursor: Any, count: int, set_cursor: bool) -> None:
        require(set_cursor, "cursor", "the rows after those written last, as passed by extend", cursor)
        expected = f"whole steps of num_envs={self.num_envs} environments, at most max_size={self.max_size}"
        require(count % self.num_envs == 0 and 0 < count <= self.max_size, "batch", expected, count)
        first, last = int(cursor[0]), int(cursor[-1])
        follows = first == self._written % self.max_size and last == (first + count - 1) % self.max_size
        require(follows, "cursor", "the rows after those written last", f"{first} to {last}")

    def _to_rows(self, data: TensorDictBase) -> tuple[TensorDictBase, Tensor, list[int]]:
        """Rows to store for transitions ``data [B]``; first images ``[E, H, W]`` of episodes; their row numbers."""
        observation, next_observation = data.get(OBSERVATION), data.get(NEXT_OBSERVATION)
        shifted = _equal(next_observation[:, :-1], observation[:, 1:]).all()
        require(bool(shifted), "next observation", "the observation shifted by one frame", "another stack")
        follows = self._follows(observation, next_observation)
        starts = (~follows).nonzero().squeeze(1)
        first = observation.index_select(0, starts)
        black, repeated = _equal(first[:, :-1], torch.zeros_like(first[:, :-1])), _equal(first[:, :-1], first[:, -1:])
        expected = "rows in order of time whose stacks shift by one frame or start black or repeated"
        require(bool((black | repeated).all()), OBSERVATION, expected, "a stack that earlier rows do not contain")
        initial = torch.zeros_like(follows, dtype=torch.int16)
        initial[starts] = torch.where(black, 0, self.stack + 1).to(torch.int16)
        history, start = self._histories(follows, initial)
        stored = {"frame": next_observation[:, -1], "history": history, "start": start}
        # Without the writer's "index", the row's own position.
        rows = data.exclude(OBSERVATION, NEXT_OBSERVATION, "index")
        rows.set(STORED, TensorDict(stored, [len(data)], device=self.device))
        return rows, first[:, -1], [self._written + i for i in starts.tolist()]

    def _follows(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """True where ``observation [B, S, H, W]`` equals the next observation of the step before, ``[B]``."""
        n = self.num_envs
        follows = torch.zeros(len(observation), dtype=torch.bool, device=self.device)
        if len(self):
            follows[:n] = _equal(observation[:n], self._frames(self._newest_rows())[:, 1:])
        follows[n:] = _equal(observation[n:], next_observation[:-n])
        return follows

    def _histories(self, follows: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """``history`` of each row (int16 ``[B]``) and the number of its episode's start (int32 ``[B]``).

        ``history = h <= S``: the h rows before belong to the same episode, and frames before its first one are black;
        ``history = h + S + 1``: they repeat the first one.
        """
        n = self.num_envs
        counts = (self._starts.count - 1 + (~follows).cumsum(0)).to(torch.int32)
        history, start = initial[:n], counts[:n]
        if len(self):
            newest = self._newest_rows()
            history, start = self._stored("history")[newest], self._stored("start")[newest]
        histories, starts = [], []
        for follow, first, count in zip(follows.split(n), initial.split(n), counts.split(n), strict=True):
            longer = history + (history % (self.stack + 1) < self.stack)
            history = torch.where(follow, longer, first)
            start = torch.where(follow, start, count)
            histories.append(history)
            starts.append(start)
        return torch.cat(histories), torch.cat(starts)

    def _newest_rows(self) -> Tensor:
        return torch.arange(self._written - self.num_envs, self._written, device=self.device) % self.max_size


def _steps_back(stack: int) -> Tensor:
    """Steps back to the row of each frame of both stacks, 0 for frames not in rows: int64 ``[2 (S + 1), S + 1]``."""
    back, known = torch.arange(stack, -1, -1), torch.arange(stack + 1).unsqueeze(1)
    return torch.where(back <= known, back, 0).repeat(2, 1)


def _equal(images: Tensor, others: Tensor) -> Tensor:
    """True where ``images`` and ``others`` (uint8, ``[B, F, H, W]``) are equal, ``[B]``."""
    # Several times as fast as (images == others).all().
    return (images ^ others).flatten(1).amax(1) == 0
