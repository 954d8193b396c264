"""TorchRL's SAC losses over the actors of this package: exact over bins of one dimension, sampled beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives import DiscreteSACLoss, SACLoss

from torchrl_reg.modules import FlowActor, MulticategoricalActor, SingleDimensionActor

STATES, BINS, ALPHA, GAMMA = 4, 5, 0.3, 0.9


def batch(size: int, dims: int) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(BINS, (size, dims), generator=generator)
    following = {
        "observation": torch.randn(size, STATES, generator=generator),
        "reward": torch.randn(size, 1, generator=generator),
        "terminated": torch.rand(size, 1, generator=generator) < 0.3,
        "done": torch.rand(size, 1, generator=generator) < 0.3,
    }
    following["done"] |= following["terminated"]
    return TensorDict(
        {
            "observation": torch.randn(size, STATES, generator=generator),
            "action": index / (BINS - 1) * 2 - 1,
            "action_index": index.squeeze(-1) if dims == 1 else index,
            "next": following,
        },
        [size],
    )


def binned(dims: int) -> MulticategoricalActor:
    torch.manual_seed(0)
    return MulticategoricalActor(nn.Linear(STATES, dims * BINS), low=[-1.0] * dims, high=[1.0] * dims, num_bins=BINS)


def test_one_dimension_is_summed_over_exactly() -> None:
    actor = binned(1)
    nets = [nn.Linear(STATES, BINS) for _ in range(2)]
    critics = [TensorDictModule(net, in_keys=["observation"], out_keys=["action_value"]) for net in nets]
    loss = DiscreteSACLoss(
        SingleDimensionActor(actor),
        critics,
        action_space="categorical",
        loss_function="l2",
        alpha_init=ALPHA,
        fixed_alpha=True,
        target_entropy=1.0,
    )
    loss.set_keys(action="action_index")
    loss.make_value_estimator(gamma=GAMMA)
    data = batch(6, 1)
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(data.clone())

    def logits(observation: torch.Tensor) -> torch.Tensor:
        return actor.network(observation).log_softmax(-1)

    with torch.no_grad():
        following = data["next"]
        q, next_q = ([net(td["observation"]) for net in nets] for td in (data, following))
        log_pi, next_log_pi = logits(data["observation"]), logits(following["observation"])
        value = (next_log_pi.exp() * (torch.minimum(*next_q) - ALPHA * next_log_pi)).sum(-1)
        target = following["reward"].squeeze(-1) + GAMMA * ~following["terminated"].squeeze(-1) * value
        chosen = [x.gather(-1, data["action_index"].unsqueeze(-1)).squeeze(-1) for x in q]
        expected = sum(((x - target) ** 2).mean() for x in chosen)
        expected_actor = (log_pi.exp() * (ALPHA * log_pi - torch.minimum(*q))).sum(-1).mean()
    torch.testing.assert_close(out["loss_qvalue"], expected)
    torch.testing.assert_close(out["loss_actor"], expected_actor)


def test_the_view_wants_one_dimension() -> None:
    with pytest.raises(ValueError, match="actor must have one action dimension, got 2"):
        SingleDimensionActor(binned(2))


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(STATES + 2, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat((observation, action), -1))


@pytest.mark.parametrize("kind", ["multicategorical", "flow"])
def test_sac_differentiates_through_samples(kind: str) -> None:
    flow = FlowActor(nn.Linear(STATES, 8), 8, low=[-1.0] * 2, high=[1.0] * 2)
    actor: Any = binned(2) if kind == "multicategorical" else flow
    critics = [ValueOperator(Critic(), in_keys=["observation", "action"]) for _ in range(2)]
    loss = SACLoss(actor, critics, target_entropy=-2.0, loss_function="l2")
    loss.make_value_estimator(gamma=GAMMA)
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(batch(16, 2))
    out["loss_actor"].backward()
    gradients = [p.grad for p in loss.actor_network_params.values(True, True) if p.grad is not None]
    assert gradients and any(g.abs().sum() > 0 for g in gradients)
    assert all(g.isfinite().all() for g in gradients)
