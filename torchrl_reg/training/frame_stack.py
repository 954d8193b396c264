"""Replay storage that keeps two frames of a transition instead of two stacks of them.

Shapes: ``B`` transitions, ``N`` environments, ``S`` frames in a stack, ``H`` and ``W`` pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage

from torchrl_reg.training.errors import require

OBSERVATION, NEXT_OBSERVATION = "observation", ("next", "observation")
# What a row holds in place of its stacks: frames [2, H, W], history and row_number.
STORED = "frame_stack"


class FrameStackStorage(LazyTensorStorage):
    """A ring of transitions that rebuilds stacked images from single frames, bit for bit.

    A row holds the newest frames of its observation and of its next observation, ``2 * H * W`` bytes
    where the stacks take ``2 * S * H * W``. The other frames lie in earlier rows of the same
    environment. So a stack must be the one before it moved on by one frame, or begin an episode with
    ``S - 1`` frames that are black or repeat the first one; :meth:`set` compares them all.

    Batches are written in order of time with all environments at each step, by a round-robin writer,
    as the example does. A batch with an entry ``"frame_stack"`` holds rows as ``storage._storage``
    has them and is written as it is.

    The two stacks of a sample share memory: do not write into them. When the ring is full, up to
    ``(S - 1) * N`` of its oldest rows lack frames that have been overwritten; asked for such a row,
    :meth:`get` returns the one ``S - 1`` steps later in the same environment.

    Args:
        max_size: capacity in transitions, a multiple of ``num_envs`` and at least ``2 * S * N``.
        stack: ``S``, frames in an observation ``[S, H, W]`` (uint8, oldest first); at least 2.
        num_envs: ``N``, environments that step together.
        device: where the rows lie.

    Raises:
        ConfigError: a bad argument.

    >>> from torchrl.data import TensorDictReplayBuffer
    >>> stacks = torch.arange(6, dtype=torch.uint8).expand(2, 6).unfold(1, 2, 1)[..., None, None]
    >>> batch = TensorDict({"observation": stacks[:, :-1], "next": {"observation": stacks[:, 1:]}}, [2, 4])
    >>> storage = FrameStackStorage(8, stack=2, num_envs=2)
    >>> replay = TensorDictReplayBuffer(storage=storage, batch_size=32)
    >>> indices = replay.extend(batch.transpose(0, 1).reshape(-1))
    >>> storage[3:5]["observation"].flatten(1).tolist()
    [[1, 2], [2, 3]]
    """

    def __init__(self, max_size: int, *, stack: int, num_envs: int, device: torch.device | str = "cpu") -> None:
        require(stack >= 2, "stack", "at least 2 frames", stack)
        require(num_envs >= 1, "num_envs", "at least 1", num_envs)
        least = 2 * stack * num_envs
        expected = f"a multiple of num_envs={num_envs} and at least 2 * stack * num_envs={least}"
        require(max_size % num_envs == 0 and max_size >= least, "max_size", expected, max_size)
        super().__init__(max_size, device=device)
        self.stack = stack
        self.num_envs = num_envs
        self._steps_back = _steps_back(stack).to(self.device)

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Writes transitions ``[B]``, or rows as they are stored, at the consecutive rows ``cursor``.

        Raises:
            ConfigError: the batch does not continue what was written before, step by step.
        """
        if data.get(STORED, None) is not None:
            super().set(cursor, data, set_cursor=set_cursor)
            return
        self._check_images(data)
        first = self._first_row(cursor, data, set_cursor)
        rows = self._to_rows(first, data.to(self.device))
        # Slices: writing uint8 images at an index tensor takes ten times as long.
        before_wrap, after_wrap = rows[: self.max_size - first], rows[self.max_size - first :]
        super().set(slice(first, first + len(before_wrap)), before_wrap)
        if len(after_wrap):
            super().set(slice(0, len(after_wrap)), after_wrap)

    def get(self, index: Any) -> TensorDictBase:
        """The transitions at ``index``, with their stacks: any index of a vector of ``len(self)``.

        Raises:
            IndexError: a row that has not been written.
        """
        size = len(self)
        if not isinstance(index, Tensor) or index.dtype == torch.bool:
            index = torch.arange(size, device=self.device)[index]
        rows = index.reshape(-1).to(self.device, torch.long)
        if not rows.is_cuda and len(rows) and not 0 <= rows.min() <= rows.max() < size:
            raise IndexError(f"index: expected rows from 0 to {size - 1}, got {rows.min()} to {rows.max()}.")
        rows = self._with_history(rows)
        transitions = self._storage.exclude(STORED)[rows]
        frames = self._frames(rows)
        transitions.set(OBSERVATION, frames[:, :-1])
        transitions.set(NEXT_OBSERVATION, frames[:, 1:])
        return transitions.reshape(index.shape)

    def __repr__(self) -> str:
        # The inherited one would rebuild every stack.
        sizes = f"max_size={self.max_size}, stack={self.stack}, num_envs={self.num_envs}"
        return f"{type(self).__name__}({sizes}, len={len(self)}, device={self.device})"

    # ------------------------------------------------------------ reading

    def _stored(self, name: str) -> Tensor:
        return self._storage.get((STORED, name))

    def _earlier(self, rows: Tensor, steps: Tensor | int) -> Tensor:
        """The rows ``steps`` steps before ``rows`` in the same environments."""
        return (rows - steps * self.num_envs) % self.max_size

    def _with_history(self, rows: Tensor) -> Tensor:
        """``rows [B]``, but rows whose oldest frame has been overwritten move ``S - 1`` steps on."""
        number = self._stored("row_number")
        steps = self._stored("history").index_select(0, rows).long() % self.stack
        oldest = number.index_select(0, self._earlier(rows, steps))
        expected = number.index_select(0, rows) - steps * self.num_envs
        return torch.where(oldest == expected, rows, self._earlier(rows, 1 - self.stack))

    def _frames(self, rows: Tensor) -> Tensor:
        """``[B, S + 1, H, W]``: the observation's frames, then the next observation's newest one."""
        stored = self._stored("frames")
        history = self._stored("history").index_select(0, rows).long()
        steps = self._steps_back.index_select(0, history)
        rows = rows.unsqueeze(1)
        sources = torch.cat([2 * self._earlier(rows, steps.clamp(min=0)), 2 * rows + 1], 1)
        frames = stored.flatten(0, 1).index_select(0, sources.flatten()).unflatten(0, sources.shape)
        black = steps < 0
        # On a GPU looking whether there are any would wait for all the work queued before.
        if black.is_cuda or black.any():
            # Ten times as fast as masked_fill_ on uint8.
            frames[:, :-1].mul_((~black).to(torch.uint8)[..., None, None])
        return frames

    # ------------------------------------------------------------ writing

    def _check_images(self, data: TensorDictBase) -> None:
        for key in (OBSERVATION, NEXT_OBSERVATION):
            images = data.get(key, None)
            fits = images is not None and images.dtype == torch.uint8 and images.ndim == 4
            got = None if images is None else f"{images.dtype} {list(images.shape)}"
            require(fits and images.shape[1] == self.stack, f"{key}", f"uint8 [B, stack={self.stack}, H, W]", got)

    def _first_row(self, cursor: Any, data: TensorDictBase, set_cursor: bool) -> int:
        """The row where a batch begins, checked to be the one after the row written last."""
        require(set_cursor, "cursor", "the rows after those written last, as extend gives them", cursor)
        count, size = len(data), len(self)
        expected = f"whole steps of num_envs={self.num_envs} environments, at most max_size={self.max_size}"
        require(count % self.num_envs == 0 and 0 < count <= self.max_size, "batch", expected, count)
        first, last = int(cursor[0]), int(cursor[-1])
        follows = last == (first + count - 1) % self.max_size
        if size < self.max_size:
            follows = follows and first == size
        else:
            number = self._stored("row_number")
            follows = follows and bool(number[first] + self.max_size == number[first - 1] + 1)
        require(follows, "cursor", "the rows after those written last", f"{first} to {last}")
        return first

    def _to_rows(self, first: int, data: TensorDictBase) -> TensorDictBase:
        """What is stored of the transitions ``data`` ``[B]`` that begin at row ``first``."""
        count = len(data)
        observation, next_observation = data.get(OBSERVATION), data.get(NEXT_OBSERVATION)
        moved_on = _equal(next_observation[:, :-1], observation[:, 1:]).all()
        require(bool(moved_on), "next observation", "the observation moved on by one frame", "another stack")
        number = torch.arange(count, device=self.device)
        if len(self):
            number += self._stored("row_number")[first - 1] + 1
        stored = {
            "frames": torch.stack([observation[:, -1], next_observation[:, -1]], 1),
            "history": self._history(first, observation),
            "row_number": number,
        }
        # The writer's "index" would only repeat where a row lies.
        rows = data.exclude(OBSERVATION, NEXT_OBSERVATION, "index")
        return rows.set(STORED, TensorDict(stored, [count], device=self.device))

    def _history(self, first: int, observation: Tensor) -> Tensor:
        """How each stack of ``observation [B, S, H, W]`` is made, uint8 ``[B]``, see ``_steps_back``."""
        follows = torch.zeros(len(observation), dtype=torch.bool, device=self.device)
        history = torch.zeros(self.num_envs, dtype=torch.uint8, device=self.device)
        older = observation[:, :-1]
        if len(self):
            before = self._earlier(torch.arange(first, first + self.num_envs, device=self.device), 1)
            history = self._stored("history")[before]
            follows[: self.num_envs] = _equal(older[: self.num_envs], self._frames(before)[:, 1:-1])
        follows[self.num_envs :] = _equal(older[self.num_envs :], observation[: -self.num_envs, 1:])
        begins = torch.zeros_like(follows, dtype=torch.uint8)
        if not follows.all():
            black, repeated = _equal(older, torch.zeros_like(older)), _equal(older, observation[:, -1:])
            rebuildable = bool((follows | black | repeated).all())
            expected = "rows in order of time whose stacks move on by one frame or begin black or repeated"
            require(rebuildable, OBSERVATION, expected, "a stack that earlier rows do not contain")
            begins = torch.where(black, 0, self.stack).to(torch.uint8)
        steps = []
        for follow, begin in zip(follows.split(self.num_envs), begins.split(self.num_envs), strict=True):
            longer = history + (history % self.stack < self.stack - 1)
            history = torch.where(follow, longer, begin)
            steps.append(history)
        return torch.cat(steps)


def _equal(images: Tensor, others: Tensor) -> Tensor:
    """Whether ``images`` and ``others`` (uint8, ``[B, F, H, W]``) are the same, bool ``[B]``."""
    # Several times as fast as comparing and reducing bools.
    return (images ^ others).flatten(1).amax(1) == 0


def _steps_back(stack: int) -> Tensor:
    """Steps back to the row of each frame of a stack, or -1 for a black one: int64 ``[2 S, S]``.

    Line ``h < S``: ``h`` earlier frames of the episode are known, black before them. Line ``S + h``:
    the first frame of the episode repeated before them.
    """
    steps = torch.arange(stack - 1, -1, -1)
    known = torch.arange(stack).unsqueeze(1)
    return torch.cat([torch.where(steps <= known, steps, -1), torch.minimum(steps, known)])
