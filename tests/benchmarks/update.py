"""How long do a loss and a target update take? Ours beside hand-written PyTorch and TorchRL's; MLP of 2x256."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate

from tests.benchmarks.measure import Table, main, microseconds
from tests.benchmarks.scripts import ALPHA, CLIP, GAMMA, TAU, descend
from torchrl_reg import objectives
from torchrl_reg.functional import quantile_huber_loss
from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor

ACTIONS, BATCH = 4, 32
SPEC = Categorical(ACTIONS)
Call = Callable[[], object]


def tables() -> list[Table]:
    """Loss forward passes, target updates, and updates of M-IQN by its numbers of fractions; batch 32."""
    torch.manual_seed(0)
    forward = [_table("Loss forward, batch 32", calls) for calls in (*forward_calls(), quantile_calls())]
    fractions = _table("Update of M-IQN by the numbers of fractions N, M, K, batch 32", fraction_calls(), 5)
    return [*forward, _table("Target update", target_calls()), fractions]


def _table(title: str, calls: dict[str, Call], repeats: int = 30) -> Table:
    return Table(title, "us", {name: microseconds(call, repeats) for name, call in calls.items()})


def mlp(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, out))


def transitions(size: int, observations: int, action: dict[str, Tensor]) -> TensorDict:
    flags = {key: torch.rand(size, 1) < 0.1 for key in ("terminated", "done")}
    after = {"observation": torch.randn(size, observations), "reward": torch.randn(size, 1), **flags}
    return TensorDict({"observation": torch.randn(size, observations), **action, "next": after}, [size])


def minibatch() -> TensorDict:
    return transitions(BATCH, 8, {"action": torch.randint(ACTIONS, (BATCH,))})


def tau_log_pi(q: Tensor) -> Tensor:
    return q - soft(q).unsqueeze(-1)


def soft(q: Tensor) -> Tensor:
    top = q.amax(-1, keepdim=True)
    return (top + TAU * torch.logsumexp((q - top) / TAU, -1, keepdim=True)).squeeze(-1)


class Raw:
    """The same losses in plain PyTorch on plain tensors, as a lower bound."""

    def __init__(self, network: nn.Module, data: TensorDict) -> None:
        self.net, self.target = network, copy.deepcopy(network)
        self.o, self.o2 = data["observation"], data["next", "observation"]
        self.a, self.r = data["action"].unsqueeze(-1), data["next", "reward"].squeeze(-1)
        self.alive = ~data["next", "terminated"].squeeze(-1)

    def dqn(self, value: Callable[[Tensor], Tensor] = lambda q: q.amax(-1)) -> Tensor:
        with torch.no_grad():
            y = self.r + GAMMA * self.alive * value(self.target(self.o2))
        return smooth_l1_loss(self.net(self.o).gather(-1, self.a).squeeze(-1), y)

    def m_dqn(self, diagnostics: bool = False) -> tuple[Tensor, ...]:
        q = self.net(self.o)
        with torch.no_grad():
            q_target = self.target(self.o)
            log_pi_a = tau_log_pi(q_target).gather(-1, self.a).squeeze(-1)
            bonus = log_pi_a.clamp(CLIP, 0.0)
            y = self.r + ALPHA * bonus + GAMMA * self.alive * soft(self.target(self.o2))
        q_a = q.gather(-1, self.a).squeeze(-1)
        loss = smooth_l1_loss(q_a, y)
        if not diagnostics:
            return (loss,)
        with torch.no_grad():
            log_pi, log_target = tau_log_pi(q) / TAU, tau_log_pi(q_target) / TAU
            pi, top = log_pi.exp(), q.topk(2).values
            entropy, kl = -(pi * log_pi).sum(-1).mean(), (pi * (log_pi - log_target)).sum(-1).mean()
            gaps = (top[:, 0] - top[:, 1]).mean(), (soft(q) - q.amax(-1)).mean(), (q_a - y).abs().mean()
            return loss, entropy, kl, *gaps, ALPHA * bonus.mean(), (log_pi_a < CLIP).float().mean()

    def m_iqn(self) -> Tensor:
        def z(network: nn.Module, observation: Tensor) -> Tensor:
            return network(observation, torch.rand(len(observation), 8))

        fractions = torch.rand(len(self.o), 8)
        online = self.net(self.o, fractions).gather(-1, self.a.unsqueeze(1).expand(-1, 8, 1)).squeeze(-1)
        with torch.no_grad():
            bonus = tau_log_pi(z(self.target, self.o).mean(1)).gather(-1, self.a).clamp(CLIP, 0.0)
            log_pi = tau_log_pi(z(self.target, self.o2).mean(1)).unsqueeze(1)
            next_z = ((log_pi / TAU).exp() * (z(self.target, self.o2) - log_pi)).sum(-1)
            y = self.r.unsqueeze(-1) + ALPHA * bonus + GAMMA * self.alive.unsqueeze(-1) * next_z
        return quantile_huber_loss(online, fractions, y, 1.0).mean()


def _forward(cls: Any, actor: nn.Module, data: TensorDict, **options: Any) -> Call:
    objectives.HardTargetUpdate(loss := cls(actor, **options), period_updates=100)
    return lambda: loss(data)


def forward_calls() -> list[dict[str, Call]]:
    """Calls of the losses on expected values, each beside its hand-written twin."""
    data, network = minibatch(), mlp(8, ACTIONS)
    raw, actor = Raw(network, data), QValueActor(network, spec=SPEC)
    stock = DQNLoss(actor, loss_function="smooth_l1")
    HardUpdate(stock, value_network_update_interval=100)
    call = partial(_forward, actor=actor, data=data, loss_function="smooth_l1")
    soft_dqn = call(objectives.SoftDQNLoss, diagnostics=False)
    m_dqn = call(objectives.MunchausenDQNLoss, diagnostics=False)
    with_diagnostics = "raw M-DQN with the diagnostics"
    return [
        {"raw DQN": raw.dqn, "TorchRL DQNLoss": lambda: stock(data)},
        {"raw soft-DQN": partial(raw.dqn, soft), "SoftDQNLoss, no diagnostics": soft_dqn},
        {"raw M-DQN": raw.m_dqn, "MunchausenDQNLoss, no diagnostics": m_dqn},
        {with_diagnostics: partial(raw.m_dqn, True), "MunchausenDQNLoss": call(objectives.MunchausenDQNLoss)},
    ]


def _quantile_actor() -> QuantileQActor:
    torso = nn.Sequential(nn.Linear(8, 256), nn.ReLU())
    network = ImplicitQuantileNetwork(torso, num_features=256, num_actions=ACTIONS, num_cells=256)
    return QuantileQActor(network, spec=SPEC)


def _counts(n: int, m: int, k: int) -> dict[str, Any]:
    return {"num_quantiles": n, "num_target_quantiles": m, "num_policy_quantiles": k}


def quantile_calls() -> dict[str, Call]:
    data, actor = minibatch(), _quantile_actor()
    call = partial(_forward, actor=actor, data=data, diagnostics=False, **_counts(8, 8, 8))
    return {
        "raw M-IQN 8/8/8": Raw(actor.quantile_network, data).m_iqn,
        "MunchausenIQNLoss, no diagnostics": call(objectives.MunchausenIQNLoss),
        "MunchausenIQNLoss, reuse_quantiles": call(objectives.MunchausenIQNLoss, reuse_quantiles=True),
        "IQNLoss, no diagnostics": call(objectives.IQNLoss),
    }


def fraction_calls() -> dict[str, Call]:
    """Updates of M-IQN by its numbers of fractions: for the prediction (N), the target (M) and the policy (K)."""
    data, reuse, share = minibatch(), {"reuse_quantiles": True}, {"share_fractions": True}

    def update(*counts: int, **options: bool) -> Call:
        return updater(objectives.MunchausenIQNLoss(_quantile_actor(), **_counts(*counts), **options), data)

    counts = [(64, 64, 32), (8, 8, 8), (32, 32, 32), (64, 64, 64)]
    calls = {f"N = {n}, M = {m}, K = {k}": update(n, m, k) for n, m, k in counts}
    calls["N = M = 64, reuse_quantiles"] = update(64, 64, 64, **reuse)
    calls["N = M = 64, K = 32, share_fractions"] = update(64, 64, 32, **share)
    calls["N = M = 64, both"] = update(64, 64, 64, **reuse, **share)
    return calls


def target_calls() -> dict[str, Call]:
    stock, ours = (DQNLoss(QValueActor(mlp(8, ACTIONS), spec=SPEC)) for _ in range(2))
    return {
        "TorchRL SoftUpdate": SoftUpdate(stock, eps=0.99).step,
        "PolyakTargetUpdate": objectives.PolyakTargetUpdate(ours, rate=0.01).step,
    }


def updater(loss: nn.Module, data: TensorDict) -> Call:
    """One gradient step: losses, backward, fused Adam, Polyak targets."""
    target = objectives.PolyakTargetUpdate(loss, rate=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-5, fused=True)

    def update() -> None:
        losses = loss(data)
        descend(optimizer, sum(value for name, value in losses.items() if name.startswith("loss")))
        target.step()

    return update


if __name__ == "__main__":
    main(tables)
