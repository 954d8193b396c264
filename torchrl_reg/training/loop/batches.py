"""Where the batches of a run come from: its collector, one pass for all seeds, or a thread that is one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from tensordict import TensorDictBase
from torch import nn

from torchrl_reg.collectors import OverlappedCollector
from torchrl_reg.training.errors import require
from torchrl_reg.training.loop.collection import AnyCollector
from torchrl_reg.training.loop.evaluation import Policy
from torchrl_reg.training.seeds.batched_collection import batched_collection
from torchrl_reg.training.seeds.workers import current_worker
from torchrl_reg.training.settings import RunSettings
from torchrl_reg.training.streams import stream_seed


class Batches:
    """One batch after the other, however the settings of the run have them collected.

    Attributes:
        collector: what steps the environments.
        components: what a checkpoint holds besides the environments.

    Raises:
        ConfigError: ``run.overlap`` with a policy that cannot be copied.
    """

    def __init__(self, make: Callable[[Policy], AnyCollector], policy: Policy, settings: RunSettings) -> None:
        self._overlapped: OverlappedCollector | None = None
        if settings.overlap:
            copied = isinstance(policy, nn.Module)
            require(copied, "run.overlap", f"false with a {type(policy).__name__}, which cannot be copied", True)
            self._overlapped = OverlappedCollector(policy, make, seed=stream_seed(settings.seed, "collector", 0))
        self.collector = make(policy) if self._overlapped is None else self._overlapped.collector
        self.components: dict[str, Any] = {} if self._overlapped is None else {"collector": self._overlapped}

    def next(self, *, go_ahead: bool) -> TensorDictBase:
        """The next batch; in an overlapped run the one after it is begun if the environments may ``go_ahead``."""
        if self._overlapped is not None:
            self._overlapped.runs_ahead = go_ahead
        return next(self._iterator)

    def wait(self) -> None:
        """Until no environment is being stepped."""
        if self._overlapped is not None:
            self._overlapped.wait()

    def shutdown(self) -> None:
        """Closes the environments."""
        (self._overlapped or self.collector).shutdown()

    @cached_property
    def _iterator(self) -> Iterator[TensorDictBase]:
        worker = current_worker()
        if worker is not None:
            return batched_collection(worker, self.collector)
        return iter(self._overlapped or self.collector)
