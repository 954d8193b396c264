"""How fast is continuous control? An update of each method beside TorchRL's SAC, and Hopper beside CleanRL's SAC.

2x256 units, batch 256, one thread; of whole runs the clock starts at the first update. Shapes: ``B`` transitions, ``D``
action dimensions.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.modules import ValueOperator
from torchrl.objectives import SACLoss

from tests.benchmarks import recipes
from tests.benchmarks.cartpole import recorded
from tests.benchmarks.measure import Table, main, microseconds
from tests.benchmarks.scripts import GAMMA, NumpyRing, descend
from tests.benchmarks.update import Call, net, transitions, updater
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
    cases = {"CleanRL's loop of sac_continuous_action.py, written again": lambda: cleanrl_sac(steps, starts)}
    algo = {"total_frames": steps, "learning_starts_frames": starts, "batch_size": BATCH, "update_every_frames": 1}
    for recipe, policy, name, more in (
        ("sac", "gaussian", "recipes/sac.py", {}),
        ("iq", "multicategorical", "recipes/iq.py", {}),
        ("iq", "multicategorical", "recipes/iq.py, alpha = .9", {"alpha": 0.9}),
    ):
        parts = {"env": EnvSettings("mujoco", game="hopper"), "policy": PolicySettings(policy, num_cells=[256, 256])}
        cases[f"{name}, 8 environments"] = recipes.speed(recipe, parts, algo | more, log_every=128)
    return Table(f"Hopper, 1 update per step, batch {BATCH}", "steps/s", cases)


def minibatch(size: int = BATCH) -> TensorDict:
    index = torch.randint(BINS, (size, DIMS))
    return transitions(size, OBSERVATIONS, {"action": index / (BINS - 1) * 2 - 1, "action_index": index})


def _value() -> ValueOperator:
    return ValueOperator(net(OBSERVATIONS, 1), in_keys=["observation"])


def _binned() -> MulticategoricalActor:
    return MulticategoricalActor(net(OBSERVATIONS, BINS * DIMS), num_bins=BINS, **BOX)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(OBSERVATIONS + DIMS, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def _actor_critics() -> tuple[Any, list[ValueOperator]]:
    critics = [ValueOperator(Critic(), in_keys=["observation", "action"]) for _ in range(2)]
    return gaussian_actor(net(OBSERVATIONS, 2 * DIMS), **BOX), critics


def _soft_q(samples: int, particles: int) -> SoftQLearningLoss:
    sampler = StochasticSamplerActor(nn.Identity(), OBSERVATIONS, num_cells=[256, 256], **BOX)
    counts = {"num_value_samples": samples, "num_particles": particles}
    return SoftQLearningLoss(sampler, _actor_critics()[1], tau=0.2, diagnostics=False, **counts)


def update_calls() -> dict[str, Call]:
    """Loss, backward, Adam and targets of each method."""
    data = minibatch()
    sac = SACLoss(*_actor_critics(), loss_function="l2", target_entropy=-float(DIMS))
    sac.make_value_estimator(gamma=GAMMA)
    calls = {"TorchRL SACLoss": updater(sac, data.clone()), "raw IQ": raw_iq(data)}  # SACLoss writes into the data
    for diagnostics, note in ((False, ""), (True, ", diagnostics")):
        losses = {
            "IQ": ImplicitQLoss(_binned(), _value(), diagnostics=diagnostics),
            "M-IQ": ImplicitQLoss(_binned(), _value(), alpha=0.9, diagnostics=diagnostics),
            "VIREL": VIRELLoss(*_actor_critics(), beta_scale=0.1, diagnostics=diagnostics),
            "SAC": SoftActorCriticLoss(*_actor_critics(), target_entropy=-float(DIMS), diagnostics=diagnostics),
        }
        calls |= {f"{name}{note}": updater(loss, data.clone()) for name, loss in losses.items()}
    pcl = PathConsistencyLoss(_binned(), _value(), diagnostics=False)
    calls["PCL, rollout 10, as many steps"] = updater(pcl, torch.stack([minibatch(10) for _ in range(BATCH // 10)]))
    counts = {"K = M = 4": (4, 4), "K = 8, M = 4 (defaults)": (8, 4), "K = M = 16": (16, 16)}
    return calls | {f"soft Q-learning, {name}": updater(_soft_q(*c), data.clone()) for name, c in counts.items()}


def raw_iq(data: TensorDict) -> Call:
    """IQ's update in plain PyTorch."""
    policy, value = net(OBSERVATIONS, BINS * DIMS), net(OBSERVATIONS, 1)
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
        self.critics = nn.ModuleList(net(observations + dims, 1) for _ in range(2))
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha, self.alpha = torch.zeros(1, requires_grad=True), 1.0
        self.target_entropy = -float(dims)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=1e-3)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=1e-3)

    def learn(self, step: int, minibatch: list[Tensor]) -> None:
        """One update of the critics and their targets, and on average one of policy and temperature."""
        o, o2, a, r, end = minibatch
        with torch.no_grad():
            a2, log_pi2 = self.actor(o2)
            value = torch.min(*self._values(self.targets, o2, a2)) - self.alpha * log_pi2
            y = (r + (1 - end) * GAMMA * value.view(-1)).unsqueeze(-1)
        losses = [nn.functional.mse_loss(q, y) for q in self._values(self.critics, o, a)]
        descend(self.critic_optimizer, sum(losses))
        if step % 2 == 0:
            for _ in range(2):  # for the step that was left out
                self._improve_policy(o)
        for held, new in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
            held.data.copy_(RATE * new.data + (1 - RATE) * held.data)

    def _improve_policy(self, o: Tensor) -> None:
        a, log_pi = self.actor(o)
        descend(self.actor_optimizer, (self.alpha * log_pi - torch.min(*self._values(self.critics, o, a))).mean())
        with torch.no_grad():
            _, log_pi = self.actor(o)
        descend(self.alpha_optimizer, (-self.log_alpha.exp() * (log_pi + self.target_entropy)).mean())
        self.alpha = self.log_alpha.exp().item()

    @staticmethod
    def _values(critics: nn.ModuleList, o: Tensor, a: Tensor) -> list[Tensor]:
        return [critic(torch.cat((o, a), 1)) for critic in critics]


def cleanrl_sac(steps: int, starts: int) -> float:
    """Steps/s of the loop of ``sac_continuous_action.py``: one environment, random actions until ``starts``."""
    torch.set_num_threads(1)
    envs = recorded("Hopper-v5")
    box = envs.single_action_space
    assert isinstance(box, gymnasium.spaces.Box)
    observation, _ = envs.reset(seed=1)
    shapes = (observation.shape[1:], observation.shape[1:], box.shape, (), ())
    sac = SAC(observation.shape[1], torch.from_numpy(box.low), torch.from_numpy(box.high))
    ring = NumpyRing(steps, [(shape, torch.float32) for shape in shapes])
    start = 0.0
    for step in range(steps):
        if step < starts:
            actions = np.array([box.sample()])
        else:
            start = start or time.perf_counter()
            actions = sac.actor(torch.Tensor(observation))[0].detach().numpy()
        following, reward, terminated, truncated, infos = envs.step(actions)
        after = infos["final_obs"][0][None] if (terminated | truncated)[0] else following
        ring.add(observation, after, actions, reward, terminated)
        observation = following
        if step >= starts:
            sac.learn(step, ring.sample(BATCH))
    envs.close()
    return (steps - starts) / (time.perf_counter() - start)


if __name__ == "__main__":
    main(tables)
