"""Continuous control: updates side by side, and whole runs on MuJoCo's Hopper beside CleanRL's loop of SAC, one thread.

The clock runs from the first update on. Shapes: ``B`` transitions, ``D`` action dimensions.
"""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from torchrl_reg.bench import recipes
from torchrl_reg.bench.cartpole import GAMMA, Columns, Ring
from torchrl_reg.bench.losses import net, update_of_policy_table
from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.envs import EnvError, EnvSettings
from torchrl_reg.modules import PolicySettings

BATCH, RATE = 256, 0.005  # transitions; Polyak
LOG_STD = (-5.0, 2.0)  # bounds


def control_tables(steps: int = 896, starts: int = 256) -> list[Table]:
    """An update of each method beside TorchRL's SAC, then ``steps`` steps of Hopper with one update a step."""
    return [update_of_policy_table(), hopper_table(steps, starts)]


def hopper_table(steps: int, starts: int) -> Table:
    """Whole runs, learning from step ``starts`` on; 256x256, batch 256, one update a step."""
    reference = "CleanRL's loop of sac_continuous_action.py, written again"
    cases = [Case(reference, lambda: cleanrl_sac(steps, starts), reference)]
    algo = {"total_frames": steps, "learning_starts_frames": starts, "batch_size": BATCH, "update_every_frames": 1}
    for recipe, policy, name, more in (
        ("sac", "gaussian", "recipes/sac.py", {}),
        ("iq", "multicategorical", "recipes/iq.py", {}),
        ("iq", "multicategorical", "recipes/iq.py, alpha = .9", {"alpha": 0.9}),
    ):
        parts = {"env": EnvSettings("mujoco", game="hopper"), "policy": PolicySettings(policy, num_cells=[256, 256])}
        measure = recipes.speed(recipe, parts, algo | more, log_every=128)
        cases.append(Case(f"{name}, 8 environments", measure, reference))
    return Table(f"Hopper, 1 update per step, batch {BATCH}", "steps/s", cases)


class Actor(nn.Module):
    """A tanh-normal policy on a box, as scripts have it.

    Args:
        observations, low, high: number of observations, and bounds of the actions ``[D]``.
    """

    def __init__(self, observations: int, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observations, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mean, self.log_std = nn.Linear(256, len(low)), nn.Linear(256, len(low))
        self.width, self.middle = (high - low) / 2, (high + low) / 2

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions ``[B, D]`` and their log-densities ``[B, 1]``."""
        features = self.body(observation)
        least, most = LOG_STD
        log_std = least + 0.5 * (most - least) * (self.log_std(features).tanh() + 1)
        dist = Normal(self.mean(features), log_std.exp())
        before = dist.rsample()
        squashed = before.tanh()
        log_density = dist.log_prob(before) - torch.log(self.width * (1 - squashed.square()) + 1e-6)
        return squashed * self.width + self.middle, log_density.sum(1, keepdim=True)


class SAC:
    """Soft actor-critic as CleanRL learns it: two critics, each with a target, every second step two policy updates."""

    def __init__(self, observations: int, low: Tensor, high: Tensor) -> None:
        dims = len(low)
        self.actor = Actor(observations, low, high)
        self.critics, self.targets = ([net(observations + dims, 1) for _ in range(2)] for _ in range(2))
        for critic, target in zip(self.critics, self.targets, strict=True):
            target.load_state_dict(critic.state_dict())
        self.log_alpha, self.alpha = torch.zeros(1, requires_grad=True), 1.0
        self.target_entropy = -float(dims)
        self.critic_optimizer = torch.optim.Adam([p for critic in self.critics for p in critic.parameters()], lr=1e-3)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=1e-3)

    def learn(self, step: int, minibatch: list[Tensor]) -> None:
        """One update of the critics and their targets, and on average one of policy and temperature."""
        o, o2, a, r, end = minibatch
        with torch.no_grad():
            a2, log_pi2 = self.actor(o2)
            value = torch.min(*self._values(self.targets, o2, a2)) - self.alpha * log_pi2
            y = r + (1 - end) * GAMMA * value.view(-1)
        first, second = (q.view(-1) for q in self._values(self.critics, o, a))
        loss = nn.functional.mse_loss(first, y) + nn.functional.mse_loss(second, y)
        _descend(self.critic_optimizer, loss)
        if step % 2 == 0:
            for _ in range(2):  # for the step that was left out
                self._improve_policy(o)
        for critic, target in zip(self.critics, self.targets, strict=True):
            for held, new in zip(target.parameters(), critic.parameters(), strict=True):
                held.data.copy_(RATE * new.data + (1 - RATE) * held.data)

    def _improve_policy(self, o: Tensor) -> None:
        a, log_pi = self.actor(o)
        _descend(self.actor_optimizer, (self.alpha * log_pi - torch.min(*self._values(self.critics, o, a))).mean())
        with torch.no_grad():
            _, log_pi = self.actor(o)
        _descend(self.alpha_optimizer, (-self.log_alpha.exp() * (log_pi + self.target_entropy)).mean())
        self.alpha = self.log_alpha.exp().item()

    @staticmethod
    def _values(critics: list[nn.Sequential], o: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (critic(torch.cat((o, a), 1)) for critic in critics)
        return first, second


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def cleanrl_sac(steps: int, starts: int) -> float:
    """Steps/s of the loop of CleanRL's ``sac_continuous_action.py``: one environment, random actions until ``starts``.

    Raises:
        EnvError: mujoco is not installed.
    """
    try:
        import mujoco  # noqa: F401
    except ModuleNotFoundError:
        raise EnvError("bench control needs mujoco, got none: pip install 'torchrl_reg[recipes,mujoco]'.") from None
    torch.set_num_threads(1)
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("Hopper-v5"))],
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    box = envs.single_action_space
    assert isinstance(box, gymnasium.spaces.Box) and envs.single_observation_space.shape is not None
    (observations,), (dims,) = envs.single_observation_space.shape, box.shape
    sac = SAC(observations, torch.from_numpy(box.low), torch.from_numpy(box.high))
    ring = Ring(steps, _columns(observations, dims))
    observation, _ = envs.reset(seed=1)
    start = 0.0
    for step in range(steps):
        if step < starts:
            actions = np.array([box.sample()])
        else:
            start = start or time.perf_counter()
            actions = sac.actor(torch.Tensor(observation))[0].detach().numpy()
        following, reward, terminated, truncated, infos = envs.step(actions)
        last = following.copy()
        for i in np.flatnonzero(terminated | truncated):
            last[i] = infos["final_obs"][i]
        ring.add(observation, last, actions, reward, terminated)
        observation = following
        if step >= starts:
            sac.learn(step, ring.sample(BATCH))
    envs.close()
    return (steps - starts) / (time.perf_counter() - start)


def _columns(observations: int, dims: int) -> Columns:
    """Observation, next observation, action, reward, terminated."""
    return [(shape, np.float32) for shape in ((observations,), (observations,), (dims,), (), ())]
