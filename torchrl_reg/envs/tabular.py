"""A finite MDP as a TorchRL environment: all sub-environments advance in one tensor operation.

Shapes: ``N`` sub-environments, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, TensorSpec, Unbounded

from torchrl_reg.envs.settings import EnvError
from torchrl_reg.envs.tensor_env import TensorEnv
from torchrl_reg.tabular import TabularMDP


class TabularEnv(TensorEnv):
    r"""``N`` independent walks in a :class:`TabularMDP`.

    Keys: ``observation`` (the state as a one-hot vector, float32 ``[N, S]``), ``state`` (the same as an index, int64
    ``[N]``), ``steps`` (since the start of the episode, int64 ``[N, 1]``), ``action`` (int64 ``[N]``); under ``next``
    also ``reward``, ``done``, ``terminated`` and ``truncated``, each ``[N, 1]``. The reward is the MDP's expected
    ``r(s, a)``.

    Reaching a terminal state *terminates* the episode, ``max_episode_frames`` *truncates* it (both, where they
    coincide), and the next one starts in a state drawn from ``start``. ``state`` and ``steps`` are read from the
    tensordict that is stepped, so a step can be taken from any state; the environment itself holds nothing but its
    random generator. ``set_seed`` restarts that: what follows is a function of the seed and ``N``, on any device.

    Args:
        mdp: the MDP; its discount factor is not used.
        num_envs: number of sub-environments N.
        max_episode_frames: steps after which an episode is truncated.
        start: probability of each first state ``[S]``; None is uniform over the states that are not terminal.
        device: where the tensors live and the steps are computed.

    Raises:
        EnvError: ``num_envs`` or ``max_episode_frames`` below 1, or ``start`` is no distribution over the states that
            are not terminal.

    Example:
        >>> from torchrl_reg.tabular import chain
        >>> env = TabularEnv(chain(3, gamma=0.9), num_envs=4, max_episode_frames=10)
        >>> env.rollout(5, break_when_any_done=False)["observation"].shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        mdp: TabularMDP,
        num_envs: int,
        *,
        max_episode_frames: int,
        start: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        widths = self._widths(mdp.num_states)
        observation: dict[str, TensorSpec] = {
            key: Unbounded(width, dtype=torch.float32) for key, width in widths.items()
        }
        observation["state"] = Categorical(mdp.num_states)
        action = Categorical(mdp.num_actions)
        super().__init__(num_envs, observation, action, max_episode_frames=max_episode_frames, device=device)
        # Buffers, so that they move with the environment, but no part of its state.
        self._start: Tensor
        self._transition: Tensor
        self._reward: Tensor
        self._terminal: Tensor
        self._one_hot: Tensor
        tables = {
            "_start": _cumulative(_start_distribution(mdp, start)),
            "_transition": _cumulative(mdp.P),
            "_reward": mdp.r.float(),
            "_terminal": mdp.terminal,
            "_one_hot": torch.eye(mdp.num_states),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(self.device), persistent=False)

    def _widths(self, num_states: int) -> dict[str, int]:
        """Lengths of the vectors that :meth:`_observed` gives."""
        return {"observation": num_states}

    def _observed(self, state: Tensor) -> dict[str, Tensor]:
        return {"observation": self._one_hot[state], "state": state}

    def _begin(self) -> dict[str, Tensor]:
        return self._observed(_draw(self._start.expand(*self.batch_size, -1), self._generator))

    def _advance(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        state, action = tensordict["state"], tensordict["action"]
        next_state = _draw(self._transition[state, action], self._generator)
        reward, terminated = self._reward[state, action], self._terminal[next_state]
        return self._observed(next_state), reward.unsqueeze(-1), terminated.unsqueeze(-1)


def _start_distribution(mdp: TabularMDP, start: Tensor | None) -> Tensor:
    try:
        return mdp.start_distribution(start)
    except ValueError as error:
        raise EnvError(str(error)) from None


def _cumulative(probabilities: Tensor) -> Tensor:
    """Cumulative sums over the last dimension that end in exactly 1 at the last state of positive probability."""
    total = probabilities.cumsum(-1)
    return total / total[..., -1:]


def _draw(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """A state ``[N]`` from each row of ``cumulative [N, S]``: the first whose cumulative probability exceeds u < 1."""
    u = torch.rand(len(cumulative), 1, generator=generator, dtype=cumulative.dtype).to(cumulative.device)
    return torch.searchsorted(cumulative.contiguous(), u, right=True).squeeze(-1)
