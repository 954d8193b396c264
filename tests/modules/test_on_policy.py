"""TorchRL's on-policy losses over the actors of this package, entropy bonus included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_reg.modules import AutoregressiveMulticategoricalActor, FlowActor, MulticategoricalActor

BOX = {"low": [-1.0, -2.0], "high": [1.0, 2.0]}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "flow":
        actor = FlowActor(nn.Linear(4, 8), 8, **BOX, num_cells=8)
        nn.init.normal_(actor.weight_out, std=0.1)
        return actor
    if kind == "autoregressive":
        return AutoregressiveMulticategoricalActor(nn.Linear(4, 8), 8, **BOX, num_bins=[3, 4], num_cells=8)
    return MulticategoricalActor(nn.Linear(4, 7), **BOX, num_bins=[3, 4])


def rollout(actor: Any, critic: Any) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    done = torch.rand(3, 6, 1, generator=generator) < 0.2
    data = TensorDict(
        {
            "observation": torch.randn(3, 6, 4, generator=generator),
            "next": {
                "observation": torch.randn(3, 6, 4, generator=generator),
                "reward": torch.randn(3, 6, 1, generator=generator),
                "done": done,
                "terminated": done.clone(),
            },
        },
        [3, 6],
    )
    with torch.no_grad():
        return GAE(gamma=0.9, lmbda=0.8, value_network=critic)(actor(data))


@pytest.mark.parametrize("kind", ["flow", "autoregressive", "multicategorical"])
@pytest.mark.parametrize("cls", [ClipPPOLoss, A2CLoss])
def test_losses_and_their_gradients(kind: str, cls: Any) -> None:
    actor, critic = make(kind), ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    data = rollout(actor, critic)
    loss = cls(actor, critic, entropy_coeff=0.1)
    torch.manual_seed(2)
    out = loss(data)
    torch.manual_seed(2)
    dist = actor.get_dist(data)
    sampled = -dist.rsample_and_log_prob((1,))[1] if kind == "flow" else dist.entropy()
    torch.testing.assert_close(out["entropy"], sampled.mean().detach())
    for name in ("loss_objective", "loss_entropy", "loss_critic"):
        params = critic.parameters() if name == "loss_critic" else actor.parameters()
        gradients = torch.autograd.grad(out[name], list(params), retain_graph=True, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients if g is not None) > 0


def test_a_step_on_ppo_moves_towards_the_better_actions() -> None:
    actor, critic = make("autoregressive"), ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    data = rollout(actor, critic)
    data["advantage"] = data["action"][..., :1].clone()  # the larger the first action, the better
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.0, critic_coeff=None)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    before = actor.get_dist(data).log_prob(data["action"])
    for _ in range(5):
        optimizer.zero_grad()
        loss(data)["loss_objective"].backward()
        optimizer.step()
    moved = actor.get_dist(data).log_prob(data["action"]) - before
    assert moved[data["action"][..., 0] > 0].mean() > moved[data["action"][..., 0] < 0].mean()
