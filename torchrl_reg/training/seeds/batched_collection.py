"""Batches collected for all seeds in one pass, if their losses are stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDictBase

from torchrl_reg.collectors import LeanCollector
from torchrl_reg.training.loop.collection import AnyCollector
from torchrl_reg.training.seeds.shared_stack import shared_stack
from torchrl_reg.training.seeds.stacked_collector import Draws, StackedCollector, drawing
from torchrl_reg.training.seeds.workers import Worker

_Share = tuple[LeanCollector, Draws]


def batched_collection(worker: Worker, collector: AnyCollector) -> Iterator[TensorDictBase]:
    """The batches of ``collector``, collected together with those of the other workers where that is possible."""
    batched = worker.shared("collection", lambda: _BatchedCollection(worker))
    batches, draw = iter(collector), None
    while True:
        batch = None
        if isinstance(collector, LeanCollector) and batched.is_possible(collector):
            state = torch.get_rng_state()
            draw = draw or drawing(collector)
            batch = worker.barrier("collection", (collector, draw()), batched)
            if batch is None:
                torch.set_rng_state(state)
        else:
            worker.take_python_generator()  # environments may draw from it
        yield next(batches) if batch is None else batch


class _BatchedCollection:
    """Collects for all workers, as long as none has finished."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._stack = worker, shared_stack(worker)  # any worker will do: each knows how many there are
        self._refused = False
        self._made: tuple[object, StackedCollector] | None = None  # with the stack that its network is of

    def is_possible(self, collector: LeanCollector) -> bool:
        """True where it is worth waiting for the others."""
        possible = not self._refused and self._stack.stacked is not None and self._worker.companions > 1
        if possible and self._made is None:
            try:
                drawing(collector)
            except ValueError:
                self._refused = True
        return possible and not self._refused

    def __call__(self, shares: list[_Share]) -> Sequence[TensorDictBase | None]:
        """The batch of each worker; None for those that must collect on their own."""
        collectors = [collector for collector, _ in shares]
        if len(shares) == self._worker.companions == self._stack.size:
            try:
                whole = self._collector(collectors).batches([draws for _, draws in shares])
                return whole.split(collectors[0].num_envs)
            except ValueError:
                self._refused = True
        return [None] * len(shares)

    def _collector(self, collectors: list[LeanCollector]) -> StackedCollector:
        stacked = self._stack.stacked
        if self._made is None or self._made[0] is not stacked or self._made[1].collectors != collectors:
            self._made = stacked, StackedCollector(collectors, stacked.parameter)
        return self._made[1]
