"""The next batches of several collectors in one pass: their policies act as one stacked network.

Shapes: ``S`` collectors of ``N`` environments each, ``T`` steps per environment in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import EGreedyModule, QValueModule

from torchrl_reg.collectors.lean import LeanCollector
from torchrl_reg.collectors.plain_policy import State, epsilon_draws, has_hooks, policy_parts
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.modules.stacked import stack_layers


class Draws(NamedTuple):
    """The random numbers ``[T, N]`` of one collector's batch: whether to explore, and the action if so."""

    explores: Tensor
    actions: Tensor


class _Explorer(NamedTuple):
    """The parts of epsilon-greedy exploration around a Q-network."""

    network: Any
    greedy: Any
    exploration: Any


def drawing(collector: LeanCollector) -> Callable[[], Draws]:
    """A function that draws the random numbers for the next batch of ``collector`` as its policy would draw them.

    Raises:
        ValueError: its policy is not epsilon-greedy in a Q-network.
    """
    draw = epsilon_draws(_explorer(collector).exploration, collector.num_envs)
    steps = collector.frames_per_batch // collector.num_envs

    def batch() -> Draws:
        return Draws(*map(torch.stack, zip(*[draw() for _ in range(steps)], strict=True)))

    return batch


def is_stacked(collector: LeanCollector) -> bool:
    """Whether the Q-network that ``collector`` acts with holds views of stacked parameters.

    Raises:
        ValueError: its policy is not epsilon-greedy in a Q-network.
    """
    parameter = next(_explorer(collector).network.parameters())
    return parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size()


class JointCollector(LeanCollector):
    """Collects for several collectors at once; each continues as if it had collected on its own.

    Args:
        collectors: alike, with epsilon-greedy policies whose networks hold views of stacked parameters
            (:class:`~torchrl_reg.objectives.stacked.StackedLoss`).

    Raises:
        ValueError: the collectors cannot be joined.
    """

    def __init__(self, collectors: Sequence[LeanCollector]) -> None:
        first, explorers = collectors[0], [_explorer(collector) for collector in collectors]
        self.collectors = list(collectors)
        self.num_envs = sum(collector.num_envs for collector in collectors)
        self.frames_per_batch = sum(collector.frames_per_batch for collector in collectors)
        self._vector: Any = _Group([collector._vector for collector in collectors])
        self._policy_device, self._storing_device = first._policy_device, first._storing_device
        self._observation_dtype, self._array_dtype = first._observation_dtype, first._array_dtype
        self._as_array = first._as_array
        self._networks = [explorer.network.module for explorer in explorers]
        self._network = layer_by_layer(_stacked_network(self._networks))
        self._explorer, self._step = explorers[0], 0
        self._pointers = self._seen()
        self._act = self._act_jointly

    def is_current(self) -> bool:
        """Whether the networks still hold the parameters that were stacked."""
        return self._pointers == self._seen()

    def batches(self, draws: Sequence[Draws]) -> TensorDict:
        """``[S * N, T]``, collector by collector, made with the random numbers ``draws``."""
        self._explores, self._actions = (torch.cat(column, 1) for column in zip(*draws, strict=True))
        self._step = 0
        self._observation = torch.cat([collector._observation for collector in self.collectors])
        self._returns = np.concatenate([collector._returns for collector in self.collectors])
        batch = self.rollout()
        start = 0
        for collector in self.collectors:
            rows = slice(start, start + collector.num_envs)
            collector._observation, collector._returns = self._observation[rows], self._returns[rows]
            start = rows.stop
        return batch

    def _act_jointly(self, state: State) -> None:
        q_key, (action_key, _, chosen_key) = self._explorer.greedy.in_keys[0], self._explorer.greedy.out_keys
        inputs = state[self._explorer.network.in_keys[0]]
        q = self._network(inputs.unflatten(0, (len(self.collectors), -1))).flatten(0, 1)
        greedy = q.argmax(-1)
        state[q_key], state[chosen_key] = q, q.gather(-1, greedy.unsqueeze(-1))
        state[action_key] = torch.where(self._explores[self._step], self._actions[self._step], greedy)
        self._step += 1

    def _seen(self) -> list[int]:
        return [next(network.parameters()).data_ptr() for network in self._networks]


class _Group:
    """Vector environments, stepped in turn, as one."""

    def __init__(self, vectors: Sequence[VectorEnv]) -> None:
        self._vectors = list(vectors)
        self._bounds = np.cumsum([0, *(vector.num_envs for vector in vectors)]).tolist()

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        stepped = [vector.step(actions[rows])[:4] for vector, rows in self._parts()]
        return (*(np.concatenate(column) for column in zip(*stepped, strict=True)), {})

    def reset(self, *, options: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        mask, first = options["reset_mask"], None
        for vector, rows in self._parts():
            if mask[rows].any():
                observation, _ = vector.reset(options={"reset_mask": mask[rows].copy()})
                if first is None:
                    first = np.zeros((len(mask), *observation.shape[1:]), observation.dtype)
                first[rows] = observation
        assert first is not None
        return first, {}

    def _parts(self) -> list[tuple[Any, slice]]:
        starts, stops = self._bounds[:-1], self._bounds[1:]
        return [(vector, slice(*ends)) for vector, *ends in zip(self._vectors, starts, stops, strict=True)]


def _explorer(collector: LeanCollector) -> _Explorer:
    parts = policy_parts(collector.policy)
    kinds = [type(part) for part in parts]
    hooked = any(has_hooks(module) for part in parts if isinstance(part, nn.Module) for module in part.modules())
    if len(parts) != 3 or kinds[1:] != [QValueModule, EGreedyModule] or len(parts[0].in_keys) != 1 or hooked:
        raise ValueError("policy must be epsilon-greedy in a Q-network of one observation, without hooks, got another.")
    greedy, exploration = parts[1:]
    masked = greedy.action_mask_key is not None or exploration.action_mask_key is not None
    if masked or greedy.action_space != "categorical" or list(parts[0].out_keys) != list(greedy.in_keys):
        raise ValueError("policy must choose among all actions, by their number, got another.")
    return _Explorer(*parts)


def _stacked_network(networks: Sequence[nn.Module]) -> nn.Module:
    stacked = copy.deepcopy(networks[0])
    stack_layers(stacked)
    named = [dict(network.named_parameters()) for network in networks]
    for name, parameter in stacked.named_parameters():
        parameter.data = _whole([each[name].detach() for each in named])
    return stacked


def _whole(views: Sequence[Tensor]) -> Tensor:
    """The tensor ``[S, ...]`` whose entries are the views.

    Raises:
        ValueError: they are laid out differently in memory.
    """
    first, step = views[0], views[0].numel()
    places = [view.storage_offset() - first.storage_offset() for view in views]
    shared = {view.untyped_storage().data_ptr() for view in views}
    if len(shared) > 1 or places != [number * step for number in range(len(views))] or not first.is_contiguous():
        raise ValueError("networks must hold views of stacked parameters, got others.")
    return first.as_strided((len(views), *first.shape), (step, *first.stride()))
