"""A finite MDP as a TorchRL environment: all sub-environments advance in one tensor operation.

Shapes: ``N`` sub-environments, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_reg.envs.settings import EnvError, unknown_name
from torchrl_reg.tabular import MIRL_WORLDS, TabularMDP, gridworld


class TabularEnv(EnvBase):
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
        for name, value in (("num_envs", num_envs), ("max_episode_frames", max_episode_frames)):
            if value < 1:
                raise EnvError(f"{name} must be an int >= 1, got {value!r}.")
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.max_episode_frames = max_episode_frames
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
        # On the CPU everywhere, so that a seed means the same episodes on every device.
        self._generator = torch.Generator()
        self._make_specs(mdp.num_states, mdp.num_actions)

    def _make_specs(self, num_states: int, num_actions: int) -> None:
        batch, device = self.batch_size, self.device
        column = torch.Size([*batch, 1])
        self.observation_spec = Composite(
            observation=Unbounded(torch.Size([*batch, num_states]), dtype=torch.float32, device=device),
            state=Categorical(num_states, shape=batch, dtype=torch.int64, device=device),
            steps=Unbounded(column, dtype=torch.int64, device=device),
            shape=batch,
            device=device,
        )
        self.action_spec = Categorical(num_actions, shape=batch, dtype=torch.int64, device=device)
        self.reward_spec = Unbounded(column, dtype=torch.float32, device=device)
        flag = Binary(1, shape=column, dtype=torch.bool, device=device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch, device=device
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        # Every sub-environment draws, so that its start does not depend on which others are reset; TorchRL keeps the
        # episodes that go on.
        state = _draw(self._start.expand(*self.batch_size, -1), self._generator)
        return self._observed(state, torch.zeros_like(state).unsqueeze(-1))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state, action = tensordict["state"], tensordict["action"]
        next_state = _draw(self._transition[state, action], self._generator)
        steps = tensordict["steps"] + 1
        terminated = self._terminal[next_state].unsqueeze(-1)
        truncated = steps >= self.max_episode_frames
        return self._observed(next_state, steps).update(
            {
                "reward": self._reward[state, action].unsqueeze(-1),
                "done": terminated | truncated,
                "terminated": terminated,
                "truncated": truncated,
            }
        )

    def _observed(self, state: Tensor, steps: Tensor) -> TensorDict:
        observed = {"observation": self._one_hot[state], "state": state, "steps": steps}
        return TensorDict(observed, batch_size=self.batch_size, device=self.device)

    def snapshot(self) -> dict[str, Tensor]:
        """The random generator: everything else is in the tensordict that is stepped."""
        return {"generator": self._generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> bool:
        """Restores the generator; True, because the future is then the same."""
        self._generator.set_state(snapshot["generator"])
        return True

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(0 if seed is None else seed)


def gridworld_env(
    num_envs: int, *, game: str, max_episode_frames: int, device: torch.device | str = "cpu"
) -> TabularEnv:
    """``num_envs`` walks in the gridworld ``game``, one of :data:`torchrl_reg.tabular.MIRL_WORLDS`.

    Every step gives -1, entering the goal 9 and ends the episode; the next one starts in a random free cell.

    Source: Grau-Moya et al. 2019 (MIRL): rewards, restart at a random location. The episode that ends at the goal
    (terminal, so nothing is bootstrapped there) is our reading of "restart"; the time limit is ours.

    Raises:
        EnvError: unknown game.
    """
    if game not in MIRL_WORLDS:
        raise EnvError(unknown_name("game", game, (*MIRL_WORLDS, "goals")))
    mdp = gridworld(MIRL_WORLDS[game], gamma=0.0)
    return TabularEnv(mdp, num_envs, max_episode_frames=max_episode_frames, device=device)


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
