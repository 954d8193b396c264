"""Our losses and updates beside hand-written PyTorch and TorchRL's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchrl.data import Categorical
from torchrl.modules import QValueActor, ValueOperator
from torchrl.objectives import DQNLoss, HardUpdate, SACLoss, SoftUpdate

import torchrl_reg.training  # noqa: F401 - as in the recipes: records that pandas is absent, see its comment
from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.functional import quantile_huber_loss
from torchrl_reg.modules import (
    ImplicitQuantileNetwork,
    MulticategoricalActor,
    QuantileQActor,
    StochasticSamplerActor,
    gaussian_actor,
)
from torchrl_reg.objectives import (
    HardTargetUpdate,
    ImplicitQLoss,
    IQNLoss,
    MunchausenDQNLoss,
    MunchausenIQNLoss,
    PathConsistencyLoss,
    PolyakTargetUpdate,
    SoftActorCriticLoss,
    SoftDQNLoss,
    SoftQLearningLoss,
    VIRELLoss,
)

TAU, ALPHA, CLIP, GAMMA, ACTIONS = 0.03, 0.9, -1.0, 0.99, 4


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, ACTIONS))


def batch(size: int) -> TensorDict:
    return TensorDict(
        {
            "observation": torch.randn(size, 8),
            "action": torch.randint(ACTIONS, (size,)),
            "next": {
                "observation": torch.randn(size, 8),
                "reward": torch.randn(size, 1),
                "terminated": torch.rand(size, 1) < 0.1,
                "done": torch.rand(size, 1) < 0.1,
            },
        },
        [size],
    )


def tau_log_pi(q: Tensor) -> Tensor:
    y = q - q.amax(-1, keepdim=True)
    return y - TAU * torch.logsumexp(y / TAU, -1, keepdim=True)


def soft(q: Tensor) -> Tensor:
    top = q.amax(-1, keepdim=True)
    return (top + TAU * torch.logsumexp((q - top) / TAU, -1, keepdim=True)).squeeze(-1)


class Raw:
    """The same losses in plain PyTorch on plain tensors, as a lower bound."""

    def __init__(self, net: nn.Module, data: TensorDict) -> None:
        self.net, self.target = net, copy.deepcopy(net)
        self.o, self.o2 = data["observation"], data["next", "observation"]
        self.a, self.r = data["action"].unsqueeze(-1), data["next", "reward"].squeeze(-1)
        self.alive = ~data["next", "terminated"].squeeze(-1)

    def dqn(self) -> Tensor:
        with torch.no_grad():
            y = self.r + GAMMA * self.alive * self.target(self.o2).amax(-1)
        return smooth_l1_loss(self.net(self.o).gather(-1, self.a).squeeze(-1), y)

    def soft_dqn(self) -> Tensor:
        with torch.no_grad():
            y = self.r + GAMMA * self.alive * soft(self.target(self.o2))
        return smooth_l1_loss(self.net(self.o).gather(-1, self.a).squeeze(-1), y)

    def m_dqn(self) -> Tensor:
        with torch.no_grad():
            bonus = tau_log_pi(self.target(self.o)).gather(-1, self.a).squeeze(-1).clamp(CLIP, 0.0)
            y = self.r + ALPHA * bonus + GAMMA * self.alive * soft(self.target(self.o2))
        return smooth_l1_loss(self.net(self.o).gather(-1, self.a).squeeze(-1), y)

    def m_dqn_with_diagnostics(self) -> tuple[Tensor, ...]:
        q = self.net(self.o)
        with torch.no_grad():
            q_target = self.target(self.o)
            log_pi_a = tau_log_pi(q_target).gather(-1, self.a).squeeze(-1)
            y = self.r + ALPHA * log_pi_a.clamp(CLIP, 0.0) + GAMMA * self.alive * soft(self.target(self.o2))
            log_pi, log_target = tau_log_pi(q) / TAU, tau_log_pi(q_target) / TAU
            pi, top = log_pi.exp(), q.topk(2).values
            scalars = (
                -(pi * log_pi).sum(-1).mean(),
                (pi * (log_pi - log_target)).sum(-1).mean(),
                (top[:, 0] - top[:, 1]).mean(),
                (soft(q) - q.amax(-1)).mean(),
                ALPHA * log_pi_a.clamp(CLIP, 0.0).mean(),
                (log_pi_a < CLIP).float().mean(),
            )
        chosen = q.gather(-1, self.a).squeeze(-1)
        return smooth_l1_loss(chosen, y), *scalars, (chosen - y).abs().mean()

    def _z(self, net: nn.Module, observation: Tensor, count: int) -> tuple[Tensor, Tensor]:
        fractions = torch.rand(len(observation), count)
        return net(observation, fractions), fractions

    def m_iqn(self) -> Tensor:
        z, fractions = self._z(self.net, self.o, 8)
        with torch.no_grad():
            bonus = tau_log_pi(self._z(self.target, self.o, 8)[0].mean(1)).gather(-1, self.a).clamp(CLIP, 0.0)
            log_pi = tau_log_pi(self._z(self.target, self.o2, 8)[0].mean(1)).unsqueeze(1)
            next_z = ((log_pi / TAU).exp() * (self._z(self.target, self.o2, 8)[0] - log_pi)).sum(-1)
            y = self.r.unsqueeze(-1) + ALPHA * bonus + GAMMA * self.alive.unsqueeze(-1) * next_z
        z = z.gather(-1, self.a.unsqueeze(1).expand(-1, 8, 1)).squeeze(-1)
        return quantile_huber_loss(z, fractions, y, 1.0).mean()


def forward_cases(size: int) -> dict[str, tuple[Callable[[], object], str]]:
    """Each case with the name of its reference."""
    data, net = batch(size), mlp()
    raw, actor = Raw(net, data), QValueActor(net, spec=Categorical(ACTIONS))

    def ready(loss: nn.Module) -> Callable[[], object]:
        HardTargetUpdate(loss, period_updates=100)
        return lambda: loss(data)

    stock = DQNLoss(actor, loss_function="smooth_l1")
    HardUpdate(stock, value_network_update_interval=100)
    iqn_net = ImplicitQuantileNetwork(
        nn.Sequential(nn.Linear(8, 256), nn.ReLU()), num_features=256, num_actions=ACTIONS, num_cells=256
    )
    iqn_raw, iqn_actor = Raw(iqn_net, data), QuantileQActor(iqn_net, spec=Categorical(ACTIONS))
    counts: dict[str, Any] = {"num_quantiles": 8, "num_target_quantiles": 8, "num_policy_quantiles": 8}
    return {
        "raw DQN": (raw.dqn, "raw DQN"),
        "TorchRL DQNLoss": (lambda: stock(data), "raw DQN"),
        "raw soft-DQN": (raw.soft_dqn, "raw soft-DQN"),
        "SoftDQNLoss, no diagnostics": (ready(SoftDQNLoss(actor, diagnostics=False)), "raw soft-DQN"),
        "raw M-DQN": (raw.m_dqn, "raw M-DQN"),
        "MunchausenDQNLoss, no diagnostics": (ready(MunchausenDQNLoss(actor, diagnostics=False)), "raw M-DQN"),
        "raw M-DQN with the diagnostics": (raw.m_dqn_with_diagnostics, "raw M-DQN with the diagnostics"),
        "MunchausenDQNLoss": (ready(MunchausenDQNLoss(actor)), "raw M-DQN with the diagnostics"),
        "raw M-IQN 8/8/8": (iqn_raw.m_iqn, "raw M-IQN 8/8/8"),
        "MunchausenIQNLoss, no diagnostics": (
            ready(MunchausenIQNLoss(iqn_actor, diagnostics=False, **counts)),
            "raw M-IQN 8/8/8",
        ),
        "MunchausenIQNLoss, reuse_quantiles": (
            ready(MunchausenIQNLoss(iqn_actor, diagnostics=False, reuse_quantiles=True, **counts)),
            "raw M-IQN 8/8/8",
        ),
        "IQNLoss, no diagnostics": (ready(IQNLoss(iqn_actor, diagnostics=False, **counts)), "raw M-IQN 8/8/8"),
    }


def fraction_cases(size: int) -> dict[str, tuple[Callable[[], object], str]]:
    """M-IQN by its numbers of fractions: for the prediction (N), the target (M) and the policy (K)."""
    data = batch(size)
    reference = "N = 64, M = 64, K = 32"

    def case(n: int, m: int, k: int, **kwargs: bool) -> Callable[[], object]:
        torso = nn.Sequential(nn.Linear(8, 256), nn.ReLU())
        network = ImplicitQuantileNetwork(torso, num_features=256, num_actions=ACTIONS, num_cells=256)
        counts = {"num_quantiles": n, "num_target_quantiles": m, "num_policy_quantiles": k}
        return updater(MunchausenIQNLoss(QuantileQActor(network, spec=Categorical(ACTIONS)), **counts, **kwargs), data)

    counts = [(8, 8, 8), (32, 32, 32), (64, 64, 32), (64, 64, 64)]
    cases = {f"N = {n}, M = {m}, K = {k}": (case(n, m, k), reference) for n, m, k in counts}
    reused = case(64, 64, 64, reuse_quantiles=True)
    shared = case(64, 64, 32, share_fractions=True)
    both = case(64, 64, 64, reuse_quantiles=True, share_fractions=True)
    return cases | {
        "N = M = 64, reuse_quantiles": (reused, reference),
        "N = M = 64, K = 32, share_fractions": (shared, reference),
        "N = M = 64, both": (both, reference),
    }


def target_update_cases() -> dict[str, tuple[Callable[[], object], str]]:
    stock, ours = (DQNLoss(QValueActor(mlp(), spec=Categorical(ACTIONS))) for _ in range(2))
    return {
        "TorchRL SoftUpdate": (SoftUpdate(stock, eps=0.99).step, "TorchRL SoftUpdate"),
        "PolyakTargetUpdate": (PolyakTargetUpdate(ours, rate=0.01).step, "TorchRL SoftUpdate"),
    }


def control_batch(size: int, observations: int = 17, dims: int = 6, bins: int = 11) -> TensorDict:
    index = torch.randint(bins, (size, dims))
    return TensorDict(
        {
            "observation": torch.randn(size, observations),
            "action": index / (bins - 1) * 2 - 1,  # what the losses read
            "action_index": index,
            "next": {
                "observation": torch.randn(size, observations),
                "reward": torch.randn(size, 1),
                "terminated": torch.rand(size, 1) < 0.1,
                "done": torch.rand(size, 1) < 0.1,
            },
        },
        [size],
    )


def net(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, out))


def updater(loss: nn.Module, data: TensorDict) -> Callable[[], object]:
    """One gradient step: losses, backward, fused Adam, Polyak targets."""
    target = PolyakTargetUpdate(loss, rate=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-5, fused=True)

    def update() -> None:
        losses = loss(data)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if name.startswith("loss")).backward()
        optimizer.step()
        target.step()

    return update


def raw_iq(data: TensorDict, bins: int = 11, dims: int = 6) -> Callable[[], object]:
    """IQ's update in plain PyTorch."""
    observations = data["observation"].shape[-1]
    policy, value = net(observations, bins * dims), net(observations, 1)
    frozen = copy.deepcopy(value).requires_grad_(False)
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)
    o, o2, index = data["observation"], data["next", "observation"], data["action_index"].unsqueeze(-1)
    r, alive = data["next", "reward"].squeeze(-1), ~data["next", "terminated"].squeeze(-1)

    def update() -> None:
        log_pi = policy(o).view(-1, dims, bins).log_softmax(-1).gather(-1, index).squeeze(-1).sum(-1)
        with torch.no_grad():
            y = r + GAMMA * alive * frozen(o2).squeeze(-1)
        error = y - 0.01 * log_pi - value(o).squeeze(-1)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        torch._foreach_lerp_(list(frozen.parameters()), [p.data for p in value.parameters()], 0.005)

    return update


def control_cases(
    size: int = 256, observations: int = 17, dims: int = 6
) -> dict[str, tuple[Callable[[], object], str]]:
    """Updates of the continuous methods, 256x256, relative to TorchRL's SACLoss."""
    data = control_batch(size, observations, dims)
    box: dict[str, Any] = {"low": [-1.0] * dims, "high": [1.0] * dims}

    def value() -> ValueOperator:
        return ValueOperator(net(observations, 1), in_keys=["observation"])

    def binned() -> MulticategoricalActor:
        return MulticategoricalActor(net(observations, 11 * dims), num_bins=11, **box)

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(observations + dims, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.net(torch.cat((observation, action), -1))

    def critics() -> list[ValueOperator]:
        return [ValueOperator(Critic(), in_keys=["observation", "action"]) for _ in range(2)]

    def gaussian() -> Any:
        return gaussian_actor(net(observations, 2 * dims), **box)

    def soft_q(samples: int, particles: int) -> SoftQLearningLoss:
        sampler = StochasticSamplerActor(nn.Identity(), observations, num_cells=[256, 256], **box)
        return SoftQLearningLoss(
            sampler, critics(), tau=0.2, diagnostics=False, num_value_samples=samples, num_particles=particles
        )

    sac = SACLoss(gaussian(), critics(), loss_function="l2", target_entropy=-6.0)
    sac.make_value_estimator(gamma=GAMMA)
    sequences = torch.stack([control_batch(10, observations, dims) for _ in range(size // 10)])
    losses = {
        "IQ": (ImplicitQLoss(binned(), value(), diagnostics=False), data),
        "IQ, diagnostics": (ImplicitQLoss(binned(), value()), data),
        "M-IQ": (ImplicitQLoss(binned(), value(), alpha=0.9, diagnostics=False), data),
        "M-IQ, diagnostics": (ImplicitQLoss(binned(), value(), alpha=0.9), data),
        "PCL, rollout 10, as many steps": (PathConsistencyLoss(binned(), value(), diagnostics=False), sequences),
        "VIREL": (VIRELLoss(gaussian(), critics(), beta_scale=0.1, diagnostics=False), data),
        "VIREL, diagnostics": (VIRELLoss(gaussian(), critics(), beta_scale=0.1), data),
        "SAC": (SoftActorCriticLoss(gaussian(), critics(), target_entropy=-6.0, diagnostics=False), data),
        "SAC, diagnostics": (SoftActorCriticLoss(gaussian(), critics(), target_entropy=-6.0), data),
        "soft Q-learning, K = M = 4": (soft_q(4, 4), data),
        "soft Q-learning, K = 8, M = 4 (defaults)": (soft_q(8, 4), data),
        "soft Q-learning, K = M = 16": (soft_q(16, 16), data),
        "TorchRL SACLoss": (sac, data),
    }
    cases: dict[str, tuple[Callable[[], object], str]] = {"raw IQ": (raw_iq(data), "TorchRL SACLoss")}
    # Copies: SACLoss writes loc, scale and its priority into the data.
    return cases | {n: (updater(loss, batch.clone()), "TorchRL SACLoss") for n, (loss, batch) in losses.items()}


Cases = dict[str, tuple[Callable[[], object], str]]


def update_tables() -> list[Table]:
    """Loss forward passes, MLP 2x256, batch 32, relative to plain PyTorch; and target updates."""
    return [
        _table("Loss forward, batch 32", forward_cases(32)),
        _table("Target update", target_update_cases()),
        _table("Update of M-IQN by the numbers of fractions N, M, K, batch 32", fraction_cases(32), calls=5),
    ]


def update_of_policy_table() -> Table:
    """Updates of continuous policies, 256x256, batch 256, relative to TorchRL's SACLoss."""
    return _table("Update of a continuous policy, batch 256", control_cases())


def _table(title: str, cases: Cases, calls: int = 30) -> Table:
    def microseconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e6 * (time.perf_counter() - start) / calls

    torch.manual_seed(0)
    lines = [Case(name, partial(microseconds, call), reference) for name, (call, reference) in cases.items()]
    return Table(title, "us", lines)
