"""The actor over bins under mean exploration, and the actors of this package in TorchRL's SAC, PPO and A2C."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss, DiscreteSACLoss, SACLoss
from torchrl.objectives.value import GAE

from torchrl_reg.modules import SingleDimensionActor


def test_the_mean_is_an_action_between_the_bins(make: Any, states: Any) -> None:
    actor, td = make("multicategorical"), states(4)
    dist = actor.get_dist(td)
    with set_exploration_type(ExplorationType.MEAN):
        actor(td)
    torch.testing.assert_close(td["action"], dist.mean)
    assert torch.equal(td["action_index"], dist.index(dist.mean))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(td["action_index"]))


def transitions(actor: Any, *batch: int) -> TensorDict:
    """What ``actor`` does at random states, and what follows."""
    torch.manual_seed(1)
    terminated = torch.rand(*batch, 1) < 0.3
    ends = {"terminated": terminated, "done": terminated | (torch.rand(*batch, 1) < 0.3)}
    following = {"observation": torch.randn(*batch, 4), "reward": torch.randn(*batch, 1), **ends}
    with torch.no_grad():
        return actor(TensorDict({"observation": torch.randn(*batch, 4), "next": following}, batch))


def test_one_dimension_is_summed_over_exactly(make: Any) -> None:
    """DiscreteSACLoss, whose actor term needs no sample."""
    actor, alpha = make("multicategorical", 1), 0.3
    data = transitions(actor, 6)
    data["action_index"] = data["action_index"].squeeze(-1)
    nets = [nn.Linear(4, 3) for _ in range(2)]
    loss = DiscreteSACLoss(
        SingleDimensionActor(actor),
        [TensorDictModule(net, in_keys=["observation"], out_keys=["action_value"]) for net in nets],
        action_space="categorical",
        alpha_init=alpha,
        fixed_alpha=True,
        target_entropy=1.0,
    )
    loss.set_keys(action="action_index")
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(data.clone())
    log_pi = actor.logits(data).log_softmax(-1)
    q = torch.minimum(*(net(data["observation"]) for net in nets))
    torch.testing.assert_close(out["loss_actor"], (log_pi.exp() * (alpha * log_pi - q)).sum(-1).mean())
    assert out["loss_qvalue"].isfinite()
    with pytest.raises(ValueError, match="actor must have one action dimension, got 2"):
        SingleDimensionActor(make("multicategorical", 2))


def check_gradients(loss: torch.Tensor, network: nn.Module | Any) -> None:
    gradients = torch.autograd.grad(loss, list(network), retain_graph=True, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0


@pytest.mark.parametrize("kind", ["multicategorical", "flow"])
def test_sac_differentiates_through_samples(kind: str, make: Any) -> None:
    actor = make(kind, 2)
    nets = [MLP(in_features=6, out_features=1, num_cells=[8]) for _ in range(2)]
    critics = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    loss = SACLoss(actor, critics, target_entropy=-2.0)
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(transitions(actor, 16))
    check_gradients(out["loss_actor"], loss.actor_network_params.parameters())


@pytest.mark.parametrize("kind", ["flow", "autoregressive", "multicategorical"])
@pytest.mark.parametrize("cls", [ClipPPOLoss, A2CLoss])
def test_on_policy_losses_and_their_entropy_bonus(kind: str, cls: Any, make: Any) -> None:
    actor, critic = make(kind, 2), ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    with torch.no_grad():
        data = GAE(gamma=0.9, lmbda=0.8, value_network=critic)(transitions(actor, 3, 6))
    torch.manual_seed(2)
    out = cls(actor, critic, entropy_coeff=0.1)(data)
    torch.manual_seed(2)
    dist = actor.get_dist(data)
    sampled = -dist.rsample_and_log_prob((1,))[1] if kind == "flow" else dist.entropy()
    torch.testing.assert_close(out["entropy"], sampled.mean().detach())
    for name in ("loss_objective", "loss_entropy"):
        check_gradients(out[name], actor.parameters())
