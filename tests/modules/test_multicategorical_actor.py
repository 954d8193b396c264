"""The actor over bins, alone and in TorchRL's SAC, PPO and A2C, and the other actors of this package there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss, DiscreteSACLoss, SACLoss
from torchrl.objectives.value import GAE

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    FlowActor,
    MulticategoricalActor,
    SingleDimensionActor,
)

LOW, HIGH = torch.tensor([-2.3, -1.0, 0.0]), torch.tensor([0.7, 1.0, 1e-3])
BINS = {"ragged": [3, 5, 2]}


def actor(**arguments) -> MulticategoricalActor:
    torch.manual_seed(0)
    return MulticategoricalActor(nn.Linear(4, 10), low=LOW, high=HIGH, num_bins=BINS["ragged"], **arguments)


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
@pytest.mark.parametrize("kind", [k for k in ExplorationType if k is not ExplorationType.MEDIAN])
def test_actor_writes_action_index_and_log_prob(batch: tuple[int, ...], kind: ExplorationType) -> None:
    policy = actor()
    td = TensorDict({"observation": torch.randn(*batch, 4)}, batch)
    dist = policy.get_dist(td)
    assert list(td.keys()) == ["observation"]
    with set_exploration_type(kind):
        policy(td)
    assert set(td.keys()) == {"observation", *policy.out_keys} and policy.stored_action_key == "action"
    index = td["action_index"]
    assert index.shape == td["action"].shape == (*batch, 3) and td["action_log_prob"].shape == batch
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(index))
    expected = dist.mean if kind is ExplorationType.MEAN else dist.action(index)
    torch.testing.assert_close(td["action"], expected)
    if kind in (ExplorationType.DETERMINISTIC, ExplorationType.MODE):
        assert torch.equal(index, dist.mode_index)


def test_actor_samples_when_exploring() -> None:
    policy, td = actor(), TensorDict({"observation": torch.zeros(1000, 4)}, [1000])
    with set_exploration_type(ExplorationType.RANDOM):
        mean = policy(td)["action"].mean(0)
    torch.testing.assert_close(mean, policy.get_dist(td[0]).mean, rtol=0, atol=0.1)
    assert (td["action"].std(0)[:2] > 0.2).all()


def test_actor_takes_nested_keys() -> None:
    policy = actor(in_keys=[("agent", "x")], action_key=("agent", "action"))
    td = policy(TensorDict({("agent", "x"): torch.randn(2, 4)}, [2]))
    assert td["agent", "action_index"].shape == td["agent", "action"].shape == (2, 3)


def test_actor_carries_its_bins_between_dtypes_and_state_dicts() -> None:
    policy = actor()
    assert set(policy.state_dict()) == {"network.weight", "network.bias"}
    td = policy.double()(TensorDict({"observation": torch.randn(2, 4).double()}, [2]))
    assert td["action"].dtype == torch.float64


def test_actor_compiles() -> None:
    policy = actor()
    compiled = torch.compile(policy, fullgraph=True, backend="eager")
    td = compiled(TensorDict({"observation": torch.randn(5, 4)}, [5]))
    torch.testing.assert_close(td["action_log_prob"], policy.get_dist(td).log_prob(td["action_index"]))


# TorchRL's SAC losses: exact over bins of one dimension, sampled beyond.

STATES, COUNT, ALPHA, GAMMA = 4, 5, 0.3, 0.9


def batch(size: int, dims: int) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(COUNT, (size, dims), generator=generator)
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
            "action": index / (COUNT - 1) * 2 - 1,
            "action_index": index.squeeze(-1) if dims == 1 else index,
            "next": following,
        },
        [size],
    )


def binned(dims: int) -> MulticategoricalActor:
    torch.manual_seed(0)
    return MulticategoricalActor(nn.Linear(STATES, dims * COUNT), low=[-1.0] * dims, high=[1.0] * dims, num_bins=COUNT)


def test_one_dimension_is_summed_over_exactly() -> None:
    actor = binned(1)
    nets = [nn.Linear(STATES, COUNT) for _ in range(2)]
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


# TorchRL's on-policy losses, entropy bonus included.

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
