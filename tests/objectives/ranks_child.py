"""One rank of a data-parallel update: its share of a batch through every loss with a coefficient of the whole batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch import distributed as dist
from torchrl.data import Categorical
from torchrl.modules import MLP, QValueActor, ValueOperator

from torchrl_reg.modules import MulticategoricalActor, PriorUpdate, gaussian_actor
from torchrl_reg.objectives import (
    DiscreteVIRELLoss,
    ImplicitQLoss,
    MutualInformationDQNLoss,
    PathConsistencyLoss,
    PolyakTargetUpdate,
    QLearningLoss,
    SoftActorCriticLoss,
    VIRELLoss,
)
from torchrl_reg.regularizers import ActionPrior, BellmanErrorCoefficient, DualCoefficient, Entropy

ROWS, STEPS = 12, 4
BOX = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


def network(inputs: int, outputs: int) -> nn.Module:
    return MLP(in_features=inputs, out_features=outputs, num_cells=[8], activation_class=nn.Tanh)


def losses() -> Iterator[tuple[str, Any]]:
    actor = QValueActor(network(4, 3), spec=Categorical(3))
    tau = DualCoefficient(0.5, target=0.4, rises="below", name="tau")
    yield "dual", QLearningLoss(actor, regularizer=Entropy(tau))
    prior = ActionPrior(
        3, probabilities=[0.6, 0.3, 0.1], beta=BellmanErrorCoefficient(2.0, rate=0.5, inverse=True, high=1e9)
    )
    yield "mirl", MutualInformationDQNLoss(QValueActor(network(4, 3), spec=Categorical(3)), prior=prior)
    yield "virel_q", DiscreteVIRELLoss(QValueActor(network(4, 3), spec=Categorical(3)), beta_scale=0.3, rate=0.5)
    policy, value = MulticategoricalActor(network(4, 10), **BOX, num_bins=5), network(4, 1)
    value = ValueOperator(value, in_keys=["observation"])
    yield "iq", ImplicitQLoss(policy, value, tau=0.5, alpha=0.5, clip_min=-1.5, target_entropy=2.0)
    yield "pcl", PathConsistencyLoss(policy, value, tau=0.5, lam=0.3, rollout=3, max_kl=0.1)
    gaussian = gaussian_actor(network(4, 4), **BOX)
    critics = [ValueOperator(network(6, 1), in_keys=["observation", "action"]) for _ in "ab"]
    yield "sac", SoftActorCriticLoss(gaussian, critics, tau=0.5, target_entropy=-1.0)
    yield "virel", VIRELLoss(gaussian, critics, beta_scale=0.3, rate=0.5)
    yield "virel_em", VIRELLoss(gaussian, critics, beta_scale=0.3, rate=0.5, mode="em")


def batch() -> TensorDict:
    shape = (ROWS, STEPS)
    ended = torch.rand(*shape, 1) < 0.2
    next_ = {"observation": torch.randn(*shape, 4), "reward": torch.randn(*shape, 1), "done": ended}
    return TensorDict({"observation": torch.randn(*shape, 4), "next": next_ | {"terminated": ended}}, shape)


def action(loss: Any, data: TensorDict) -> Tensor:
    if hasattr(loss, "action_space"):
        return torch.randint(3, data.shape)
    if isinstance(loss, (ImplicitQLoss, PathConsistencyLoss)):
        return torch.randint(5, (*data.shape, 2)) / 2 - 1
    return 2 * torch.rand(*data.shape, 2) - 1


def results(rank: int, world: int, masked: bool) -> dict[str, Tensor]:
    """Mean gradients over the ranks, coefficients and priors after an update; ``masked`` leaves unequal shares."""
    found: dict[str, Tensor] = {}
    torch.manual_seed(0)
    for name, loss in losses():
        loss.make_value_estimator(gamma=0.9)
        PolyakTargetUpdate(loss, rate=0.5)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        data = batch()
        data["action"] = action(loss, data)
        if masked:
            data["collector", "mask"] = (
                torch.rand(ROWS, STEPS) < torch.linspace(0.3, 1.0, ROWS).unsqueeze(-1)
            ).unsqueeze(-1)
        data = data.chunk(world)[rank].contiguous()
        loss.zero_grad()  # some networks serve several losses
        out = loss(data)
        sum(term for key, term in out.items() if key.startswith("loss")).backward()
        if hasattr(loss, "observe"):
            loss.observe(out)
        if name == "mirl":
            loss.prior.beta_coefficient.observe(out["squared_td_error"])
            data.names = [None, "time"]
            PriorUpdate(loss.prior, loss.value_network, rate=0.01)(data)
            found["mirl prior"] = loss.prior.log_prior.exp()
        found |= {f"{name} {key}": c.value for key, c in loss._coefficients().items()}
        for key, parameter in loss.named_parameters():
            if parameter.grad is None or (masked and "log_value" not in key):
                continue
            if world > 1:
                dist.all_reduce(parameter.grad)
            found[f"{name} {key}"] = parameter.grad / world
    return found


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    # Draws of a share are those of the whole: all the same.
    torch.normal = lambda mean, std, *size, **kwargs: mean + 0.3 * std
    torch.distributions.normal._standard_normal = lambda shape, **kwargs: torch.full(shape, 0.3, **kwargs)
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.save([results(rank, world, masked) for masked in (False, True)], out)
    if world > 1:
        dist.destroy_process_group()
