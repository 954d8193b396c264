"""Speed of continuous control: our actor-critics on Hopper, compared with CleanRL's SAC.

2x256 units, batch 256, one thread; the clock starts at the first update. Shapes: ``B`` transitions, ``D`` action
dimensions.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tests.benchmarks.cartpole import recorded
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import GAMMA, NumpyRing, Size, cleanrl, descend, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import PolicySettings

BATCH, RATE, LOG_STD = 256, 0.005, (-5.0, 2.0)  # transitions, Polyak, bounds


def table(steps: int = 896, starts: int = 256) -> Table:
    """Steps/s on Hopper, one update a step from step ``starts`` on."""
    size = Size(steps, starts, 1, BATCH)
    cases = {"CleanRL's loop of sac_continuous_action.py, written again": lambda: cleanrl_sac(size)}
    for name, policy, more in (
        ("sac", "gaussian", {}),
        ("iq", "multicategorical", {}),
        ("iq", "multicategorical", {"alpha": 0.9}),
        ("virel", "gaussian", {}),
        ("soft_q", "sampler", {}),
        ("sac", "gaussian", {"compile": True}),
        ("iq", "multicategorical", {"compile": True}),
        ("iq", "multicategorical", {"alpha": 0.9, "compile": True}),
    ):
        parts = {"env": EnvSettings("mujoco", game="hopper"), "policy": PolicySettings(policy, num_cells=[256, 256])}
        note = (" compiled" if "compile" in more else "") + (", alpha = 0.9" if "alpha" in more else "")
        cases[f"recipes/{name}.py{note}, 8 environments"] = recipe(name, parts, size, log_every=128, **more)
    return Table(f"Hopper, 1 update per step, batch {BATCH}", "steps/s", cases)


def mlp(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, out))


class Critic(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = mlp(inputs, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


class Actor(nn.Module):
    """A tanh-normal policy on the box from ``low`` to ``high`` ``[D]``, as scripts have it."""

    def __init__(self, observations: int, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.body = mlp(observations, 1)[:-1]
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
        self.actor = Actor(observations, low, high)
        self.critics = nn.ModuleList(Critic(observations + len(low)) for _ in range(2))
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha, self.alpha = torch.zeros(1, requires_grad=True), 1.0
        self.target_entropy = -float(len(low))
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=1e-3)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=1e-3)

    def learn(self, step: int, minibatch: list[Tensor]) -> None:
        """One update of the critics and their targets, and on average one of policy and temperature."""
        o, o2, a, r, end = minibatch
        with torch.no_grad():
            a2, log_pi2 = self.actor(o2)
            value = torch.min(*(target(o2, a2) for target in self.targets)) - self.alpha * log_pi2
            y = (r + (1 - end) * GAMMA * value.view(-1)).unsqueeze(-1)
        descend(self.critic_optimizer, sum(nn.functional.mse_loss(critic(o, a), y) for critic in self.critics))
        for _ in range(2 if step % 2 == 0 else 0):  # two, for the step that was left out
            self._improve_policy(o)
        for held, new in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
            held.data.copy_(RATE * new.data + (1 - RATE) * held.data)

    def _improve_policy(self, o: Tensor) -> None:
        a, log_pi = self.actor(o)
        value = torch.min(*(critic(o, a) for critic in self.critics))
        descend(self.actor_optimizer, (self.alpha * log_pi - value).mean())
        with torch.no_grad():
            _, log_pi = self.actor(o)
        descend(self.alpha_optimizer, (-self.log_alpha.exp() * (log_pi + self.target_entropy)).mean())
        self.alpha = self.log_alpha.exp().item()


def cleanrl_sac(size: Size) -> float:
    """Steps/s of the loop of ``sac_continuous_action.py``: random actions until ``size.starts``."""
    envs = recorded("Hopper-v5")
    box: Any = envs.single_action_space
    sac = SAC(envs.single_observation_space.shape[0], torch.from_numpy(box.low), torch.from_numpy(box.high))

    def act(step: int, observation: np.ndarray) -> np.ndarray:
        if step < size.starts:
            return np.array([box.sample()])
        return sac.actor(torch.Tensor(observation))[0].detach().numpy()

    def learn(step: int, ring: NumpyRing) -> None:
        sac.learn(step, ring.sample(size.batch))

    return cleanrl(envs, act, learn, size)


if __name__ == "__main__":
    main(table)
