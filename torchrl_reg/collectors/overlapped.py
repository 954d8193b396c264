"""Collection of the next batch while the caller learns from the last one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from torchrl_reg.collectors.local_generators import LocalGenerators


class OverlappedCollector:
    """Iterates over the batches ``[N, T]`` of another collector (N environments, T steps), collected in a thread.

    While the caller learns from batch ``k``, a copy of the policy collects batch ``k + 1``. It was copied when ``k``
    was returned, so it has learnt from the batches up to ``k - 1``, one fewer than without overlap, and its epsilon is
    that old. Results do not depend on which thread is faster: the copy draws from local generators.

    Use it with large environments or networks (Atari): small operations hold Python's global lock most of the time.

    TorchRL has one exploration type for all threads. It is ``RANDOM`` from the first batch on, also for the caller, and
    must stay so while a batch is collected: losses of this package do not change it; for TorchRL's set
    ``loss.deterministic_sampling_mode = ExplorationType.RANDOM``; before an evaluation call :meth:`wait`.

    Args:
        policy: the module that learns. A copy of it acts, updated by its ``state_dict()``.
        make: builds the collector of a policy, with the exploration type ``RANDOM``.
        seed: of the policy's random numbers. Environments are seeded separately.

    Attributes:
        collector: the return value of ``make``.
        runs_ahead: collect the next batch as soon as one is returned. If False, it is collected on request, with the
            same result; until then the environments do not move, so that a checkpoint can store them.

    Raises:
        ValueError: the policy is not a module, so it has no parameters to copy.
        RuntimeError: the exploration type changed while a batch was collected.

    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.collectors import FastCollector
    >>> from torchrl_reg.envs import EnvSettings, make_env
    >>> env = make_env(EnvSettings("cartpole"), 4)
    >>> actor = QValueActor(nn.Linear(4, 2), spec=env.full_action_spec_unbatched["action"])
    >>> collector = OverlappedCollector(actor, lambda acting: FastCollector(env, acting, frames_per_batch=12))
    >>> next(iter(collector)).shape
    torch.Size([4, 3])
    >>> collector.shutdown()
    """

    def __init__(self, policy: Any, make: Callable[[nn.Module], Any], *, seed: int = 0) -> None:
        if not isinstance(policy, nn.Module):
            raise ValueError(f"policy must be a module, so that a copy can act, got a {type(policy).__name__}.")
        self._policy, self._acting = policy, copy.deepcopy(policy)
        self.collector, self.runs_ahead = make(self._acting), True
        self._batches: Iterator[TensorDictBase] | None = None
        self._generators = LocalGenerators(seed)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collector")
        self._exploration = ExitStack()
        self._pending: Future[TensorDictBase | None] | None = None
        self._is_copied = False  # True if the copy is up to date for the next batch
        device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[TensorDictBase]:
        try:
            while (batch := self._next()) is not None:
                yield batch
        finally:  # a loop that ends early leaves the caller's exploration type as it was
            self.wait()
            self._exploration.close()

    @property
    def stands_still(self) -> bool:
        """True if no batch is being collected or waiting to be returned."""
        return self._pending is None

    def wait(self) -> None:
        """Returns when no batch is being collected.

        Call it before using the environments, or the global generators of NumPy or Python.
        """
        if self._pending is not None:
            wait([self._pending])

    def shutdown(self) -> None:
        """Closes the environments, after the batch that is being collected."""
        self.wait()
        self._exploration.close()
        self._thread.shutdown()
        self.collector.shutdown()

    def state_dict(self) -> dict[str, Any]:
        """The copy of the policy and the states of its generators. Requires ``runs_ahead=False``."""
        return {
            "policy": self._acting.state_dict(),
            "is_copied": self._is_copied,
            "draws": self._generators.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._acting.load_state_dict(state["policy"])
        self._is_copied = state["is_copied"]
        self._generators.load_state_dict(state["draws"])

    def _next(self) -> TensorDictBase | None:
        if self._pending is None:
            self._begin()
        self.wait()
        self._exploration.close()
        assert self._pending is not None
        batch, self._pending = self._pending.result(), None
        if self._stream is not None and batch is not None:
            batch = batch.clone()  # else the other stream could overwrite it while this one reads it
        self._copy()
        if self.runs_ahead:
            self._begin()
        return batch

    def _copy(self) -> None:
        self._acting.load_state_dict(self._policy.state_dict())
        self._acting.train(self._policy.training)
        self._is_copied = True

    def _begin(self) -> None:
        if not self._is_copied:
            self._copy()
        self._is_copied = False
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        # Set here, not in the worker thread, which would restore it at the wrong time and undo the caller's setting.
        self._exploration.enter_context(set_exploration_type(ExplorationType.RANDOM))
        self._pending = self._thread.submit(self._collect)

    def _collect(self) -> TensorDictBase | None:
        self._batches = self._batches or iter(self.collector)
        with self._generators, torch.cuda.stream(self._stream):
            batch = next(self._batches, None)
        if exploration_type() != ExplorationType.RANDOM:
            raise RuntimeError(
                f"The exploration type must stay RANDOM while a batch is collected, got {exploration_type()}: set "
                "loss.deterministic_sampling_mode = ExplorationType.RANDOM, and call wait() before an evaluation."
            )
        if self._stream is not None:
            self._stream.synchronize()
        return batch
