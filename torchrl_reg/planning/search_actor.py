"""A planner as a TensorDict module that acts, and a model as an environment that it can act in.

Shapes: ``N`` environments, ``A`` actions, ``*O`` one observation.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import make_composite_from_td

from torchrl_reg.planning.models import EmulatorModel
from torchrl_reg.planning.planners import Planner
from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate, Model, check_minimum, forgetting


class SearchActor(TensorDictModuleBase):
    """Searches from the states in a TensorDict and writes the results: it acts in collectors and evaluations.

    Reads ``state`` (as :class:`torchrl_reg.envs.TabularEnv` and :class:`ModelEnv` have it) and writes ``action``,
    ``root_value [N]``, ``root_q [N, A]`` (untried actions: ``root_value``), ``root_policy [N, A]`` and
    ``root_visits [N, A]``, float32, values in reward units: targets for a network, where they are stored.

    Args:
        planner: the search, such as :class:`MENTS`.
        model: the model to search in.
        evaluate: values new leaves.
        generator: draws the planner's random numbers; by default torch's own.
        state_key: where the states are.
        action_key: where the action goes.

    Example:
        >>> from torchrl_reg.envs import TabularEnv
        >>> from torchrl_reg.planning import UCT, TabularModel
        >>> from torchrl_reg.tabular import chain
        >>> mdp = chain(4, gamma=0.9)
        >>> actor = SearchActor(UCT(num_simulations=50, gamma=0.9), TabularModel(mdp))
        >>> batch = TabularEnv(mdp, num_envs=2, max_episode_frames=9).rollout(3, actor, break_when_any_done=False)
        >>> batch["action"].tolist(), batch["root_q"].shape
        ([[1, 1, 1], [1, 1, 1]], torch.Size([2, 3, 2]))
    """

    def __init__(
        self,
        planner: Planner,
        model: Model,
        *,
        evaluate: Evaluate = zero_evaluation,
        generator: torch.Generator | None = None,
        state_key: NestedKey = "state",
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__()
        self.planner, self.model, self.evaluate, self.generator = planner, model, evaluate, generator
        self.in_keys: list[NestedKey] = [state_key]
        self.out_keys: list[NestedKey] = [action_key, "root_value", "root_q", "root_policy", "root_visits"]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = tensordict.batch_size
        state = tensordict.get(self.in_keys[0])
        flat = state.reshape(-1, *state.shape[len(batch) :])
        with forgetting(self.model):
            found = self.planner(self.model, flat, evaluate=self.evaluate, generator=self.generator)
        q = torch.where(found.q.isfinite(), found.q, found.value.unsqueeze(-1))
        columns = (found.action, found.value.float(), q.float(), found.pi.float(), found.visits.float())
        for key, column in zip(self.out_keys, columns, strict=True):
            tensordict.set(key, column.reshape((*batch, *column.shape[1:])))
        return tensordict


class ModelEnv(EnvBase):
    """``N`` episodes in an :class:`EmulatorModel` as a TorchRL environment, so that a search can start from its states.

    Keys: ``state`` (the number of a snapshot, int64 ``[N]``), ``observation`` (where the model observes), ``steps``
    (int64 ``[N, 1]``), ``action`` (int64 ``[N]``); under ``next`` also ``reward`` (raw, not clipped),
    ``done``, ``terminated`` and ``truncated``, each ``[N, 1]``. Only the present states' snapshots are kept.

    Args:
        model: the model, for the exclusive use of this environment.
        num_envs: episodes N side by side.
        max_episode_steps: actions after which an episode is truncated.

    Raises:
        ValueError: if ``num_envs`` or ``max_episode_steps`` is below 1.

    Example:
        >>> import gymnasium
        >>> from torchrl_reg.planning import UCT, GymModel
        >>> model = GymModel(gymnasium.make("CartPole-v1"))
        >>> env = ModelEnv(model, num_envs=2, max_episode_steps=10)
        >>> batch = env.rollout(4, SearchActor(UCT(num_simulations=8), model))
        >>> batch["next", "reward"].sum(1).flatten().tolist(), model.num_snapshots
        ([4.0, 4.0], 2)
    """

    def __init__(self, model: EmulatorModel, num_envs: int, *, max_episode_steps: int) -> None:
        check_minimum(1, num_envs=num_envs, max_episode_steps=max_episode_steps)
        super().__init__(batch_size=torch.Size([num_envs]))
        self.model, self.max_episode_steps, self._seed = model, max_episode_steps, 0
        self._state, self._steps = torch.zeros(num_envs).long(), torch.zeros(num_envs, 1).long()
        self.observation_spec = make_composite_from_td(self._reset())
        self._seed = 0
        self.action_spec = Categorical(model.num_actions, shape=self.batch_size, dtype=torch.int64)
        self.reward_spec = Unbounded(self._steps.shape, dtype=torch.float32)
        flag = Binary(shape=self._steps.shape, dtype=torch.bool)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=self.batch_size)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        fresh = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.reshape(-1)
        # TorchRL does not say where the other episodes are.
        state, steps = self._state.clone(), self._steps.clone()
        for index in fresh.nonzero().flatten().tolist():
            state[index] = self.model.reset(1, self._seed)
            steps[index], self._seed = 0, self._seed + 1
        return self._arrived(state, steps)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        _, state, ended = self.model.step(tensordict["state"], tensordict["action"])
        after = self._arrived(state, tensordict["steps"] + 1)
        terminated, truncated = ended.unsqueeze(-1), self._steps >= self.max_episode_steps
        after["reward"] = self.model.raw_reward(state).float().unsqueeze(-1)
        return after.update({"done": terminated | truncated, "terminated": terminated, "truncated": truncated})

    def _arrived(self, state: Tensor, steps: Tensor) -> TensorDict:
        """Observations of the episodes, which are now in ``state``; forgets all other states."""
        self._state, self._steps = state, steps
        self.model.release(0, keep=state)
        observed = {"state": state, "steps": steps}
        if self.model.observe:
            observed["observation"] = self.model.observation(state)
        return TensorDict(observed, batch_size=self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = 0 if seed is None else seed
