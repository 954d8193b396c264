"""The first images of episodes, kept as long as a ring of transitions needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class EpisodeStarts:
    """A queue of images ``[H, W]``, each with the number of the row whose episode it begins, in order of rows.

    Starts are counted from the first one ever. The memory doubles when it is full.

    Args:
        device: where the images lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self._images: Tensor | None = None
        self._rows: deque[int] = deque()  # of those kept
        self._first = 0  # count of the oldest kept

    @property
    def count(self) -> int:
        """Starts so far, those no longer kept included."""
        return self._first + len(self._rows)

    def bytes(self) -> int:
        return 0 if self._images is None else self._images.nbytes

    def append(self, images: Tensor, rows: Sequence[int]) -> None:
        """Adds ``images [E, H, W]``, which begin the rows numbered ``rows`` (ascending)."""
        if not len(rows):
            return
        self._reserve(len(self._rows) + len(rows), images)
        assert self._images is not None
        counts = torch.arange(self.count, self.count + len(rows), device=self._device)
        self._images.index_copy_(0, counts % len(self._images), images.to(self._device))
        self._rows.extend(rows)

    def drop_before(self, row: int) -> None:
        """Forgets the starts of rows numbered below ``row``."""
        while self._rows and self._rows[0] < row:
            self._rows.popleft()
            self._first += 1

    def images(self, counts: Tensor) -> Tensor:
        """The images ``[B, H, W]`` of the starts numbered ``counts [B]``; anything for those no longer kept."""
        assert self._images is not None
        return self._images.index_select(0, counts.long() % len(self._images))

    def between(self, start: int, stop: int) -> dict[str, Any]:
        """The starts of rows ``start`` to ``stop``, for :meth:`load`."""
        chosen = [i for i, row in enumerate(self._rows) if start <= row < stop]
        rows = [self._rows[i] for i in chosen]
        if not rows:
            return {"first": self.count, "rows": [], "images": None}
        counts = self._first + torch.tensor(chosen, device=self._device)
        return {"first": int(counts[0]), "rows": rows, "images": self.images(counts).cpu()}

    def load(self, starts: Mapping[str, Any]) -> None:
        """Adds what :meth:`between` gave, after the starts of all rows before."""
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
