"""How fast is continuous control? An update of each method beside TorchRL's SAC, and Hopper beside CleanRL's SAC.

2x256 units, batch 256, one thread; of whole runs the clock starts at the first update. Shapes: ``B`` transitions, ``D``
action dimensions.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.modules import ValueOperator
from torchrl.objectives import SACLoss

from tests.benchmarks.cartpole import recorded
from tests.benchmarks.measure import Table, main, microseconds
from tests.benchmarks.scripts import GAMMA, NumpyRing, Size, cleanrl, descend, recipe
from tests.benchmarks.update import Call, mlp, transitions, updater
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import MulticategoricalActor, PolicySettings, StochasticSamplerActor, gaussian_actor
from torchrl_reg.objectives import ImplicitQLoss, PathConsistencyLoss, SoftActorCriticLoss, SoftQLearningLoss, VIRELLoss

BATCH, OBSERVATIONS, DIMS, BINS = 256, 17, 6, 11
BOX: dict[str, Any] = {"low": [-1.0] * DIMS, "high": [1.0] * DIMS}
RATE, LOG_STD = 0.005, (-5.0, 2.0)  # Polyak; bounds


def tables(steps: int = 896, starts: int = 256) -> list[Table]:
    """An update of each method beside TorchRL's SAC, then ``steps`` steps of Hopper with one update a step."""
    torch.manual_seed(0)
    updates = {name: microseconds(call) for name, call in update_calls().items()}
    return [Table(f"Update of a continuous policy, batch {BATCH}", "us", updates), hopper_table(steps, starts)]


def hopper_table(steps: int, starts: int) -> Table:
    """Whole runs, learning from step ``starts`` on, one update a step."""
    size = Size(steps, starts, 1, BATCH)
    cases = {"CleanRL's loop of sac_continuous_action.py, written again": lambda: cleanrl_sac(size)}
    for name, policy, note, more in (
        ("sac", "gaussian", "", {}),
        ("iq", "multicategorical", "", {}),
        ("iq", "multicategorical", ", alpha = .9", {"alpha": 0.9}),
    ):
        parts = {"env": EnvSettings("mujoco", game="hopper"), "policy": PolicySettings(policy, num_cells=[256, 256])}
        cases[f"recipes/{name}.py{note}, 8 environments"] = recipe(name, parts, size, log_every=128, **more)
    return Table(f"Hopper, 1 update per step, batch {BATCH}", "steps/s", cases)


def minibatch(size: int = BATCH) -> TensorDict:
    index = torch.randint(BINS, (size, DIMS))
    return transitions(size, OBSERVATIONS, {"action": index / (BINS - 1) * 2 - 1, "action_index": index})


def _binned() -> tuple[MulticategoricalActor, ValueOperator]:
    actor = MulticategoricalActor(mlp(OBSERVATIONS, BINS * DIMS), num_bins=BINS, **BOX)
    return actor, ValueOperator(mlp(OBSERVATIONS, 1), in_keys=["observation"])


class Critic(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = mlp(inputs, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def _gaussian() -> tuple[Any, list[ValueOperator]]:
    critics = [ValueOperator(Critic(OBSERVATIONS + DIMS), in_keys=["observation", "action"]) for _ in range(2)]
    return gaussian_actor(mlp(OBSERVATIONS, 2 * DIMS), **BOX), critics


def _soft_q(samples: int, particles: int) -> SoftQLearningLoss:
    sampler = StochasticSamplerActor(nn.Identity(), OBSERVATIONS, num_cells=[256, 256], **BOX)
    counts = {"num_value_samples": samples, "num_particles": particles}
    return SoftQLearningLoss(sampler, _gaussian()[1], tau=0.2, diagnostics=False, **counts)


def update_calls() -> dict[str, Call]:
    """Loss, backward, Adam and targets of each method."""
    data = minibatch()
    sac = SACLoss(*_gaussian(), loss_function="l2", target_entropy=-float(DIMS))
    sac.make_value_estimator(gamma=GAMMA)
    calls = {"TorchRL SACLoss": updater(sac, data.clone()), "raw IQ": raw_iq(data)}  # SACLoss writes into the data
    for diagnostics, note in ((False, ""), (True, ", diagnostics")):
        losses = {
            "IQ": ImplicitQLoss(*_binned(), diagnostics=diagnostics),
            "M-IQ": ImplicitQLoss(*_binned(), alpha=0.9, diagnostics=diagnostics),
            "VIREL": VIRELLoss(*_gaussian(), beta_scale=0.1, diagnostics=diagnostics),
            "SAC": SoftActorCriticLoss(*_gaussian(), target_entropy=-float(DIMS), diagnostics=diagnostics),
        }
        calls |= {f"{name}{note}": updater(loss, data.clone()) for name, loss in losses.items()}
    pcl = PathConsistencyLoss(*_binned(), diagnostics=False)
    paths = torch.stack([minibatch(10) for _ in range(BATCH // 10)])
    paths["observation"][:, 1:] = paths["next", "observation"][:, :-1]
    calls["PCL, rollout 10, as many steps"] = updater(pcl, paths)
    counts = {"K = M = 4": (4, 4), "K = 8, M = 4 (defaults)": (8, 4), "K = M = 16": (16, 16)}
    return calls | {f"soft Q-learning, {name}": updater(_soft_q(*c), data.clone()) for name, c in counts.items()}


def raw_iq(data: TensorDict) -> Call:
    """IQ's update in plain PyTorch."""
    policy, value = mlp(OBSERVATIONS, BINS * DIMS), mlp(OBSERVATIONS, 1)
    target = copy.deepcopy(value).requires_grad_(False)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=1e-5, fused=True)
    o, o2, index = data["observation"], data["next", "observation"], data["action_index"].unsqueeze(-1)
    r, alive = data["next", "reward"].squeeze(-1), ~data["next", "terminated"].squeeze(-1)

    def update() -> None:
        log_pi = policy(o).view(-1, DIMS, BINS).log_softmax(-1).gather(-1, index).squeeze(-1).sum(-1)
        with torch.no_grad():
            y = r + GAMMA * alive * target(o2).squeeze(-1)
        descend(optimizer, (y - 0.01 * log_pi - value(o).squeeze(-1)).square().mean())
        torch._foreach_lerp_(list(target.parameters()), [p.data for p in value.parameters()], RATE)

    return update


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
    main(tables)
