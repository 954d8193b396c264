"""Batches collected for all seeds in one pass: environments stepped as one, Q-networks stacked.

Shapes: ``S`` collectors of ``N`` environments each, ``T`` steps per environment in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_reg.collectors.fast import FastCollector
from torchrl_reg.compat import has_hooks
from torchrl_reg.lab.seeds.batched_update import loss_stack
from torchrl_reg.lab.seeds.workers import Worker
from torchrl_reg.modules.acting import State, has_plain
from torchrl_reg.modules.ensembles import stack_layers
from torchrl_reg.modules.layers import layer_by_layer

#: Random numbers ``[T, N]`` of one collector's batch: whether it explores, and the random action.
Draws = tuple[Tensor, Tensor]
_SeedBatch = tuple[FastCollector, Draws]


def batched_collection(worker: Worker, collector: Any) -> Iterator[TensorDictBase]:
    """The batches of ``collector``, collected in one pass with those of the other workers where possible."""
    batched = worker.shared("collection", lambda: _BatchedCollection(worker))
    batches = iter(collector)
    draw: Callable[[], Draws] | None = None
    while True:
        batch = None
        if isinstance(collector, FastCollector) and batched.is_possible(collector):
            state = torch.get_rng_state()
            draw = draw or drawing(collector)
            batch = worker.barrier("collection", (collector, draw()), batched)
            if batch is None:
                torch.set_rng_state(state)
        else:
            worker.take_python_generator()  # environments may draw from it
        yield next(batches) if batch is None else batch


class _BatchedCollection:
    """Collects for all workers while all are running and their losses are stacked."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._stack = worker, loss_stack(worker)  # any worker: it is read for `companions` only
        self._unsupported = False
        self._cached: tuple[object, StackedCollector] | None = None  # with the stack of its network

    def is_possible(self, collector: FastCollector) -> bool:
        """True if the other workers can collect together with ``collector``."""
        possible = not self._unsupported and self._stack.stacked is not None and self._worker.companions > 1
        if possible and self._cached is None:
            try:
                drawing(collector)
            except ValueError:
                self._unsupported = True
        return possible and not self._unsupported

    def __call__(self, seeds: list[_SeedBatch]) -> Sequence[TensorDictBase | None]:
        """The batch of each worker; None for those that must collect alone."""
        collectors, stacked = [collector for collector, _ in seeds], self._stack.stacked
        if len(seeds) == self._worker.companions == len(self._stack.losses):
            try:
                if self._cached is None or self._cached[0] is not stacked or self._cached[1].collectors != collectors:
                    self._cached = stacked, StackedCollector(collectors, stacked.parameter)
                return self._cached[1].batches([draws for _, draws in seeds]).split(collectors[0].num_envs)
            except ValueError:
                self._unsupported = True
        return [None] * len(seeds)


def drawing(collector: FastCollector) -> Callable[[], Draws]:
    """A function that draws the random numbers of the next batch of ``collector``, in the order of its policy.

    Raises:
        ValueError: the policy is not epsilon-greedy in a Q-network.
    """
    _, exploration = _actor_and_exploration(collector)
    steps = collector.frames_per_batch // collector.num_envs

    def batch() -> Draws:
        explores, actions = zip(*[exploration.draw(collector.num_envs) for _ in range(steps)], strict=True)
        return torch.stack(explores), torch.stack(actions)

    return batch


class StackedCollector(FastCollector):
    """Collects for several collectors at once; each continues as if it had collected alone.

    Args:
        collectors: collectors of one configuration, with epsilon-greedy policies.
        whole: function from a policy's parameter to the parameter ``[S, ...]`` that it is a view of
            (:meth:`~torchrl_reg.objectives.stacked.StackedLoss.parameter`).

    Raises:
        ValueError: a policy's parameters are not among the stacked ones, or a policy is not epsilon-greedy.
    """

    def __init__(self, collectors: Sequence[FastCollector], whole: Callable[[nn.Parameter], nn.Parameter]) -> None:
        vars(self).update(vars(collectors[0]))  # devices, dtypes
        self.collectors, self._hooks = list(collectors), [hooks for one in collectors for hooks in one._hooks]
        self._bind_policy()
        self.num_envs = sum(collector.num_envs for collector in collectors)
        self.frames_per_batch = sum(collector.frames_per_batch for collector in collectors)
        self._vector: Any = _VectorGroup([collector._vector for collector in collectors])
        actor, self._exploration = _actor_and_exploration(collectors[0])
        stacked = _ForEachSeed(_stacked_network(actor.network, whole), len(collectors))
        self._actor = copy.deepcopy(actor, {id(actor.network): stacked})  # a copy with the stacked network

    def _bind_policy(self) -> None:
        """Raises ``ValueError`` for hooks registered on a policy since, which one stacked network would not call."""
        for collector in self.collectors:
            _actor_and_exploration(collector)
        self._hook_counts, self._act = list(map(len, self._hooks)), self._act_for_all

    def batches(self, draws: Sequence[Draws]) -> TensorDict:
        """A batch ``[S * N, T]``, collector by collector, from the random numbers ``draws``."""
        self._draws = zip(*(torch.cat(column, 1) for column in zip(*draws, strict=True)), strict=True)
        self._observation = torch.cat([collector._observation for collector in self.collectors])
        self._returns = np.concatenate([collector._returns for collector in self.collectors])
        with self._vector:
            batch = self.rollout()
        for collector, rows in zip(self.collectors, self._vector.rows, strict=True):
            collector._observation, collector._returns = self._observation[rows], self._returns[rows]
        return batch

    def _act_for_all(self, state: State) -> None:
        self._actor.plain(state)
        self._exploration.plain(state, next(self._draws))


class _ForEachSeed(nn.Module):
    """A stacked network applied to inputs ``[S * N, ...]``, seed by seed."""

    def __init__(self, stacked: nn.Module, seeds: int) -> None:
        super().__init__()
        self._call, self._seeds = layer_by_layer(stacked), seeds

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._call(*(x.unflatten(0, (self._seeds, -1)) for x in inputs)).flatten(0, 1)


class _VectorGroup:
    """Vector environments as one, stepped in turn; inside ``with`` together, if they have ``joined``."""

    def __init__(self, vectors: Sequence[VectorEnv]) -> None:
        bounds = np.cumsum([0, *(vector.num_envs for vector in vectors)]).tolist()
        self.vectors, self.rows = vectors, [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]
        kinds = {type(vector) for vector in vectors}
        self._join: Any = getattr(kinds.pop(), "joined", None) if len(kinds) == 1 else None
        self._joint: Any = None

    def __enter__(self) -> None:
        if self._join is not None:
            self._joint = self._join(self.vectors)

    def __exit__(self, *_: object) -> None:
        if self._joint is not None:
            self._joint.part(self.vectors)
        self._joint = None

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        if self._joint is not None:
            return self._joint.step(actions)
        stepped = [vector.step(actions[rows])[:4] for vector, rows in zip(self.vectors, self.rows, strict=True)]
        return (*(np.concatenate(column) for column in zip(*stepped, strict=True)), {})

    def reset(self, *, options: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        if self._joint is not None:
            return self._joint.reset(options=options)
        mask, first = options["reset_mask"], np.zeros(0)
        for vector, rows in zip(self.vectors, self.rows, strict=True):
            if mask[rows].any():
                observation, _ = vector.reset(options={"reset_mask": mask[rows].copy()})
                if not first.size:
                    first = np.zeros((len(mask), *observation.shape[1:]), observation.dtype)
                first[rows] = observation
        return first, {}


def _actor_and_exploration(collector: FastCollector) -> tuple[Any, Any]:
    """The policy's actor, whose ``network`` can be replaced, and its exploration, which can ``draw`` in advance.

    Raises:
        ValueError: the policy has other parts, or hooks.
    """
    policy: Any = collector.policy
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    parts = list(getattr(policy, "module", ())) if modules else []
    plain = len(parts) == 2 and all(has_plain(type(module)) for module in (policy, *parts))  # type: ignore[arg-type]
    separate = plain and hasattr(parts[0], "network") and hasattr(parts[1], "draw") and not parts[1].action_mask_key
    if not separate or any(has_hooks(module) or getattr(module, "draws", False) for module in modules):
        raise ValueError("policy must be epsilon-greedy in a Q-network, without masks or hooks, got another.")
    return parts[0], parts[1]


def _stacked_network(network: nn.Module, whole: Callable[[nn.Parameter], nn.Parameter]) -> nn.Module:
    """``network`` with stacked layers and parameters."""
    stacked = copy.deepcopy(network)
    stack_layers(stacked)
    for name, parameter in network.named_parameters():
        stacked.get_parameter(name).data = whole(parameter).data
    return stacked
