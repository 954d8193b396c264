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

from torchrl_reg.collectors.own_generators import OwnGenerators


class OverlappedCollector:
    """Iterates over the batches ``[N, T]`` of another collector (N environments, T steps), collected in a thread.

    While the caller has batch ``k``, batch ``k + 1`` is collected by a copy of the policy, made when ``k`` was handed
    out. That policy has learnt from the batches up to ``k - 1``, one fewer than without overlap, and its epsilon
    is as old. Nothing depends on which thread is faster: the copy draws from generators of its own.

    It pays where the environments or the networks are large (Atari), because small operations hold Python's lock.

    TorchRL has one exploration type for all threads. It is ``RANDOM`` from the first batch on, also for the caller, and
    has to stay so while a batch is being collected: losses of this package leave it, those of TorchRL do with
    ``loss.deterministic_sampling_mode = ExplorationType.RANDOM``, and before an evaluation comes :meth:`wait`.

    Args:
        policy: acts, and goes on learning meanwhile. Everything it learns is in its ``state_dict()``.
        make: builds the collector around the policy it is given, with the exploration type ``RANDOM``.
        seed: of what the policy draws. Environments are seeded as always.

    Attributes:
        collector: what ``make`` built.
        runs_ahead: whether handing out a batch begins the next one. Otherwise that is begun when it is asked for, with
            the same result; until then the environments stand still, as a checkpoint needs them to.

    Raises:
        ValueError: a policy that is no module, of which no copy could follow it.
        RuntimeError: another exploration type at the end of a batch.

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
        self._draws = OwnGenerators(seed)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collector")
        self._exploring = ExitStack()
        self._pending: Future[TensorDictBase | None] | None = None
        self._is_copied = False  # whether the copy is what the next batch is to be collected with
        device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[TensorDictBase]:
        while (batch := self._next()) is not None:
            yield batch

    @property
    def stands_still(self) -> bool:
        """True if no batch is being collected or waits to be handed out."""
        return self._pending is None

    def wait(self) -> None:
        """Returns once nothing is being collected.

        Call it before you use the environments, or the global generators of NumPy or Python.
        """
        if self._pending is not None:
            wait([self._pending])

    def shutdown(self) -> None:
        """Closes the environments, once the batch that is being collected is complete."""
        self.wait()
        self._exploring.close()
        self._thread.shutdown()
        self.collector.shutdown()

    def state_dict(self) -> dict[str, Any]:
        """The copy of the policy and its random numbers; of a collector that does not run ahead."""
        return {"policy": self._acting.state_dict(), "is_copied": self._is_copied, "draws": self._draws.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        self._acting.load_state_dict(state["policy"])
        self._is_copied = state["is_copied"]
        self._draws.load_state_dict(state["draws"])

    def _next(self) -> TensorDictBase | None:
        if self._pending is None:
            self._begin()
        self.wait()
        self._exploring.close()
        assert self._pending is not None
        batch, self._pending = self._pending.result(), None
        if self._stream is not None and batch is not None:
            batch = batch.clone()  # into memory that the other stream does not use again while this one reads it
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
        # In this thread: one that set and restored it meanwhile would be in the way of whatever the caller sets.
        self._exploring.enter_context(set_exploration_type(ExplorationType.RANDOM))
        self._pending = self._thread.submit(self._collect)

    def _collect(self) -> TensorDictBase | None:
        self._batches = self._batches or iter(self.collector)
        with self._draws, torch.cuda.stream(self._stream):
            batch = next(self._batches, None)
        if exploration_type() != ExplorationType.RANDOM:
            raise RuntimeError(
                f"The exploration type must stay RANDOM while a batch is collected, got {exploration_type()}: set "
                "loss.deterministic_sampling_mode = ExplorationType.RANDOM, and call wait() before an evaluation."
            )
        if self._stream is not None:
            self._stream.synchronize()
        return batch
