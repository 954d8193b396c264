"""Models to search: tables, synthetic trees, emulators that are stepped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from torchrl_reg.planning.scalar_models import Tables
from torchrl_reg.planning.scalar_search import Scalar
from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate, check_minimum
from torchrl_reg.tabular import TabularMDP


class TabularModel:
    """Any :class:`torchrl_reg.tabular.TabularMDP`; states are its indices ``[M]``, rewards the expected ones.

    They are in the MDP's reward units.

    Where an action has several next states they are sampled, and a search keeps them all apart.

    Args:
        mdp: the MDP; its discount factor is not used: a search has its own.
        num_outcomes: next states that a search keeps apart for each action; None is all that an action can have, 1
            searches in open loop, see :func:`torchrl_reg.planning.mcts`.
        generator: draws the next states; by default torch's own.

    Raises:
        ValueError: if ``num_outcomes`` is below 1.

    Example:
        >>> from torchrl_reg.tabular import random_mdp
        >>> model = TabularModel(random_mdp(6, 3, gamma=0.9, seed=0, branching=2))
        >>> model.stochastic, model.num_outcomes
        (True, 2)
    """

    def __init__(
        self, mdp: TabularMDP, *, num_outcomes: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        if num_outcomes is not None and num_outcomes < 1:
            raise ValueError(f"num_outcomes must be at least 1 or None, got {num_outcomes}.")
        self.mdp, self.generator = mdp, generator
        self.num_actions = mdp.num_actions
        possible = int((mdp.P[~mdp.terminal] > 0).sum(-1).max())
        self.stochastic = possible > 1
        self.num_outcomes = possible if num_outcomes is None else num_outcomes
        self._successor = mdp.P.argmax(-1)
        cumulative = mdp.P.cumsum(-1)
        self._cumulative = cumulative / cumulative[..., -1:]

    def reset(self, num_states: int, seed: int) -> Tensor:
        """First states of ``num_states`` episodes ``[M]``, uniform over those that are not terminal."""
        weights = self.mdp.start_distribution().cpu()
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(weights, num_states, replacement=True, generator=generator).to(self.mdp.P.device)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        if self.stochastic:
            u = torch.rand(len(state), 1, generator=self.generator, dtype=torch.float64, device=state.device)
            successor = torch.searchsorted(self._cumulative[state, action], u, right=True).squeeze(-1)
        else:
            successor = self._successor[state, action]
        return self.mdp.r[state, action], successor, self.mdp.terminal[successor]

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree: of a deterministic MDP whose states are not evaluated."""
        if self.stochastic or evaluate is not zero_evaluation:
            return None
        nothing = torch.zeros(self.mdp.num_states, dtype=torch.float64)
        return Tables(self._successor, self.mdp.r.double(), self.mdp.terminal, nothing).scalar(evaluate)


class SyntheticTrees:
    r"""``T`` trees of branching ``k`` and depth ``d`` whose leaves give a noisy reward; nothing else does.

    Each edge has a weight drawn from U(0, 1); a leaf's mean is the sum of the weights on its way, scaled so that the
    means of a tree's leaves fill [0, 1]. Entering a leaf ends the episode with a reward drawn from :math:`N(mean,
    noise^2)`. A state is ``tree * nodes + node`` (``[M]``, int64), nodes counted by level from the root, 0: the
    children of ``n`` are ``k n + 1`` to ``k n + k``.

    Source: Xiao et al. 2019 (MENTS), section 5; the details are those of the code of Dam et al. 2021.

    Args:
        branching: actions k >= 1.
        depth: d >= 1.
        num_trees: T >= 1.
        noise: standard deviation of a leaf's reward >= 0, in reward units.
        seed: of the trees, and of the noise.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> trees = SyntheticTrees(branching=2, depth=3, num_trees=2, seed=0)
        >>> trees.leaf_mean.shape, trees.leaf_mean.amin(-1).tolist(), trees.leaf_mean.amax(-1).tolist()
        (torch.Size([2, 8]), [0.0, 0.0], [1.0, 1.0])
    """

    num_outcomes = 1

    def __init__(self, branching: int, depth: int, num_trees: int = 1, *, noise: float = 0.0, seed: int) -> None:
        check_minimum(1, branching=branching, depth=depth, num_trees=num_trees)
        if not noise >= 0:
            raise ValueError(f"noise must be a standard deviation >= 0, got {noise}.")
        self.num_actions, self.depth, self.num_trees, self.noise = branching, depth, num_trees, noise
        self.stochastic = noise > 0
        #: Nodes that are no leaves, and all nodes, of one tree.
        self.num_inner = sum(branching**level for level in range(depth))
        self.num_nodes = self.num_inner + branching**depth
        self.generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(num_trees, 1, dtype=torch.float64)
        for level in range(depth):
            weight = torch.rand(num_trees, branching ** (level + 1), generator=self.generator, dtype=torch.float64)
            total = total.repeat_interleave(branching, -1) + weight
        low, high = total.amin(-1, keepdim=True), total.amax(-1, keepdim=True)
        #: Mean rewards of the leaves ``[T, L]``, float64.
        self.leaf_mean = (total - low) / (high - low) if branching > 1 else torch.zeros_like(total)

    def roots(self) -> Tensor:
        """The root of every tree ``[T]``."""
        return torch.arange(self.num_trees) * self.num_nodes

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        reward, successor, terminated = self._quiet_step(state, action)
        if self.noise > 0:
            noise = torch.randn(len(reward), generator=self.generator, dtype=reward.dtype)
            reward = torch.where(terminated, reward + self.noise * noise, reward)
        return reward, successor, terminated

    def _quiet_step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step without noise."""
        tree = torch.div(state, self.num_nodes, rounding_mode="floor")
        node = (state - tree * self.num_nodes) * self.num_actions + 1 + action
        leaf = node - self.num_inner
        reward = self.leaf_mean[tree, leaf.clamp(min=0)]
        return torch.where(leaf >= 0, reward, 0.0), tree * self.num_nodes + node, leaf >= 0

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree: of trees without noise whose states are not evaluated."""
        if self.stochastic or evaluate is not zero_evaluation:
            return None
        sizes = (self.num_actions, self.num_nodes, self.num_inner)
        return Scalar(_step, _leaf, (self.leaf_mean.flatten(), *sizes), compiles=True)

    def tables(self) -> Tables:
        """The same trees without noise, for :func:`torchrl_reg.planning.search_tables`; leaves are worth 0."""
        size = self.num_trees * self.num_nodes
        state = torch.arange(size).unsqueeze(-1).repeat(1, self.num_actions)
        inner = state[:, 0] % self.num_nodes < self.num_inner
        reward = torch.zeros(size, self.num_actions, dtype=torch.float64)
        reward[inner], state[inner], _ = self._quiet_step(state[inner], torch.arange(self.num_actions))
        return Tables(state, reward, ~inner, torch.zeros(size, dtype=torch.float64))

    def root_q(self, regularizer: nn.Module, gamma: float = 1.0) -> Tensor:
        """Exact action values of the roots ``[T, k]`` under a regularizer, from the leaves backwards."""
        q = self.leaf_mean
        for level in reversed(range(1, self.depth)):
            q = gamma * regularizer(q.view(self.num_trees, self.num_actions**level, self.num_actions)).value
        return q

    def root_value(self, regularizer: nn.Module, gamma: float = 1.0) -> Tensor:
        """Exact values of the roots ``[T]`` under a regularizer."""
        return regularizer(self.root_q(regularizer, gamma)).value


def _step(data: Any, states: Any, at: int, action: int, node: int) -> tuple[float, bool]:
    leaf_mean, num_actions, num_nodes, num_inner = data
    tree = states[at] // num_nodes
    there = (states[at] - tree * num_nodes) * num_actions + 1 + action
    states[node] = tree * num_nodes + there
    if there < num_inner:
        return 0.0, False
    return leaf_mean[tree * (num_nodes - num_inner) + there - num_inner], True


def _leaf(data: Any, states: Any, node: int, q: Any, prior: Any) -> float:
    return 0.0


@dataclass(frozen=True)
class Snapshot:
    """A simulator at one moment, between two steps.

    Args:
        saved: the state that brings the simulator back there.
        observation: the observation there ``[*O]``; None if nothing needs it.
        raw_reward: the reward of the step that led there, before any clipping.
    """

    saved: Any
    observation: Tensor | None
    raw_reward: float = 0.0


class EmulatorModel:
    """Keeps snapshots of a simulator and names them by numbers, so that a search sees tensors of states ``[M]``, int64.

    Rewards ``[M]`` are in reward units. Subclasses save, restore and step one simulator (:meth:`_start`,
    :meth:`_advance`), or several (:meth:`_begin`, :meth:`_advance_all`). Snapshots stay until they are released: a
    search is followed by ``model.release(mark)`` of a ``mark = model.mark()`` taken before it, as
    :class:`torchrl_reg.planning.SearchActor` does.

    Args:
        num_actions: number of actions A.
        stochastic: whether a step from a restored state may differ from the last one.
    """

    num_outcomes = 1
    #: True if snapshots hold observations.
    observe = True

    def __init__(self, num_actions: int, *, stochastic: bool = False) -> None:
        self.num_actions, self.stochastic = num_actions, stochastic
        self._snapshots: dict[int, Snapshot] = {}
        self._next = 0

    def reset(self, num_states: int, seed: int) -> Tensor:
        """First states of ``num_states`` episodes ``[M]``; the i-th is a function of ``seed + i``."""
        return torch.tensor([self._keep(each) for each in self._begin(range(seed, seed + num_states))])

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        rewards, states, ends = [], [], []
        snapshots = [self._snapshots[number] for number in state.tolist()]
        for reward, snapshot, terminated in self._advance_all(snapshots, action.tolist()):
            rewards.append(reward)
            states.append(self._keep(snapshot))
            ends.append(terminated)
        ended = torch.tensor(ends, dtype=torch.bool)
        return torch.tensor(rewards, dtype=torch.float64), torch.tensor(states, dtype=torch.int64), ended

    def observation(self, state: Tensor) -> Tensor:
        """Observations in the states ``[M, *O]``."""
        seen = [self._snapshots[number].observation for number in state.tolist()]
        if any(image is None for image in seen):
            raise ValueError("observe must be True for a model whose states are looked at, got False.")
        return torch.stack(seen)  # type: ignore[arg-type]

    def raw_reward(self, state: Tensor) -> Tensor:
        """Rewards of the steps that led to the states ``[M]``, before any clipping."""
        return torch.tensor([self._snapshots[n].raw_reward for n in state.tolist()], dtype=torch.float64)

    def mark(self) -> int:
        """The moment that :meth:`release` goes back to."""
        return self._next

    def release(self, mark: int, keep: Tensor | None = None) -> None:
        """Forgets the snapshots taken since ``mark``, but for those in ``keep [M]``."""
        kept = set() if keep is None else set(keep.tolist())
        for number in [n for n in self._snapshots if n >= mark and n not in kept]:
            self._forget(self._snapshots.pop(number))

    @property
    def num_snapshots(self) -> int:
        """Number of snapshots currently held."""
        return len(self._snapshots)

    def _keep(self, snapshot: Snapshot) -> int:
        number, self._next = self._next, self._next + 1
        self._snapshots[number] = snapshot
        return number

    def _begin(self, seeds: Sequence[int]) -> list[Snapshot]:
        """The first states of several episodes."""
        return [self._start(seed) for seed in seeds]

    def _advance_all(self, snapshots: Sequence[Snapshot], actions: Sequence[int]) -> list[tuple[float, Snapshot, bool]]:
        """Reward, state and termination one action after each of ``snapshots``."""
        return [self._advance(*each) for each in zip(snapshots, actions, strict=True)]

    def _forget(self, snapshot: Snapshot) -> None:
        """Is called with snapshots that are no longer needed."""

    def _start(self, seed: int) -> Snapshot:
        """The first state of an episode."""
        raise NotImplementedError

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        """Reward, state and termination one action after ``snapshot``."""
        raise NotImplementedError


class GymModel(EmulatorModel):
    """Plans in copies (``copy.deepcopy``) of a gymnasium environment with discrete actions, at states ``[M]``, int64.

    Its random generator is copied with it: a search in a stochastic environment sees the exact outcomes to come. Time
    limits do not end an episode of the model; the caller counts the steps.

    Args:
        env: the environment; it is copied and not used itself.

    Raises:
        ValueError: if its actions are continuous, its observations are no arrays (a Dict), it cannot be copied, or its
            copies are not independent.

    Example:
        >>> model = GymModel(gymnasium.make("CartPole-v1"))
        >>> state = model.reset(num_states=2, seed=0)
        >>> reward, state, terminated = model.step(state, torch.tensor([0, 1]))
        >>> reward.tolist(), model.observation(state).shape
        ([1.0, 1.0], torch.Size([2, 4]))
    """

    def __init__(self, env: gymnasium.Env) -> None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"env must have discrete actions, got {name} with {env.action_space}.")
        space = getattr(env, "observation_space", None)
        if space is not None and space.shape is None:
            raise ValueError(
                "env must give arrays as observations (FlattenObservation of gymnasium.wrappers makes one of several), "
                f"got {name} with {space}."
            )
        try:
            self._env = copy.deepcopy(env)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            raise ValueError(f"env must be one that copy.deepcopy can clone, got {name} ({reason}).") from None
        super().__init__(int(env.action_space.n))
        self._first = int(env.action_space.start)
        self._check_independence(name)

    def _start(self, seed: int) -> Snapshot:
        env = copy.deepcopy(self._env)
        return Snapshot(env, _tensor(env.reset(seed=seed)[0]))

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        env = copy.deepcopy(snapshot.saved)
        observation, reward, terminated, _, _ = env.step(self._first + action)
        return float(reward), Snapshot(env, _tensor(observation), float(reward)), bool(terminated)

    def _check_independence(self, name: str) -> None:
        """Copies that share hidden state diverge when they are stepped one after the other."""
        start, steps = self._start(0), []
        for _ in range(2):
            reward, snapshot, terminated = self._advance(start, self.num_actions - 1)
            steps.append(repr((reward, terminated, np.asarray(snapshot.observation).tolist())))
        if steps[0] != steps[1]:
            raise ValueError(
                f"env must be one whose copies are independent, got {name}, two copies of which reached different "
                "states by the same action."
            )


class VectorModel(EmulatorModel):
    """Plans in one copy of a vector environment of :mod:`torchrl_reg.envs`, restored to the states ``[M]`` wanted.

    Rewards are in the environment's reward units. Its random generator is a part of the state: a search sees
    future random numbers. Where the environment truncates an episode the model ends it, so give it a limit beyond every
    search; the caller counts the steps.

    Args:
        env: the environment, a :class:`torchrl_reg.envs.Restorable` of one copy, for the exclusive use of this model.

    Raises:
        ValueError: it holds several copies, cannot be restored, or its actions are continuous.

    Example:
        >>> from torchrl_reg.envs import MinAtar
        >>> settings = {"sticky_actions": 0.0, "minimal_actions": True, "difficulty_ramping": True}
        >>> model = VectorModel(MinAtar(1, game="breakout", max_episode_frames=10**9, **settings))
        >>> reward, state, terminated = model.step(model.reset(num_states=2, seed=0), torch.tensor([0, 1]))
        >>> model.observation(state).shape
        torch.Size([2, 4, 10, 10])
    """

    def __init__(self, env: Any) -> None:
        name = type(env).__name__
        if not (hasattr(env, "snapshot") and hasattr(env, "restore")):
            raise ValueError(f"env must be one that can be restored from a snapshot, got {name}.")
        if not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"env must have discrete actions, got {name} with {env.single_action_space}.")
        if env.num_envs != 1:
            raise ValueError(f"env must hold one copy, got {name} with {env.num_envs}.")
        super().__init__(int(env.single_action_space.n))
        self._env = env

    def _start(self, seed: int) -> Snapshot:
        observation, _ = self._env.reset(seed=seed)
        return Snapshot(self._env.snapshot(), _tensor(observation[0]))

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        self._env.restore(snapshot.saved)
        observation, (reward,), (terminated,), (truncated,), _ = self._env.step(np.array([action]))
        after = Snapshot(self._env.snapshot(), _tensor(observation[0]), float(reward))
        return float(reward), after, bool(terminated or truncated)


def _tensor(observation: Any) -> Tensor:
    """A copy of an observation, which its environment may overwrite."""
    return torch.tensor(np.asarray(observation))
