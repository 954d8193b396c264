"""Losses over an actor and critics, at values where a wrong sign or a missing factor is visible."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from torchrl_reg.modules import FlowActor, StochasticSamplerActor, gaussian_actor
from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss, SoftQLearningLoss, VIRELLoss

NUM_OBSERVATIONS, NUM_ACTIONS, GAMMA = 4, 3, 0.9
BOX = {"low": [-1.0, -2.0], "high": [1.0, 2.0]}


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def transitions(
    *shape: int, seed: int = 1, dtype: torch.dtype = torch.float32, actions: Literal["index", "box", "none"] = "index"
) -> TensorDict:
    """Actions of another policy, indices or points of the box; rows that end, and how."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*shape, *size, generator=generator, dtype=torch.float64).to(dtype)

    terminated, truncated = (torch.rand(*shape, 1, generator=generator) < 0.3 for _ in range(2))
    root = {"observation": 2 * normal(NUM_OBSERVATIONS)}
    if actions == "box":
        root["action"] = torch.tensor([1.0, 2.0], dtype=dtype) * normal(2).tanh()
    elif actions == "index":
        root["action"] = torch.randint(NUM_ACTIONS, shape, generator=generator)
    ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
    following = {"observation": 2 * normal(NUM_OBSERVATIONS), "reward": normal(1), **ends}
    return TensorDict({**root, "next": following}, shape)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(NUM_OBSERVATIONS + 2, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def make_actor(kind: str, seed: int = 0, in_key: Any = "observation", action_key: Any = "action") -> Any:
    torch.manual_seed(seed)
    keys = {"in_keys": [in_key], "action_key": action_key}
    if kind == "gaussian":
        return gaussian_actor(mlp(NUM_OBSERVATIONS, 4), **BOX, **keys)
    if kind == "flow":
        actor = FlowActor(mlp(NUM_OBSERVATIONS, 8), 8, **BOX, **keys, num_cells=8)
        nn.init.normal_(actor.weight_out, std=0.05)
        return actor
    return StochasticSamplerActor(mlp(NUM_OBSERVATIONS, 8), 8, **BOX, **keys, num_cells=[16])


def make_critic(seed: int = 1, in_key: Any = "observation", action_key: Any = "action") -> ValueOperator:
    torch.manual_seed(seed)
    return ValueOperator(Joined(), in_keys=[in_key, action_key])


class Buildable:
    """A case that has ``cls``, ``kwargs`` and ``networks(seed)``."""

    def loss(self: Any, networks: Any = None, *, perturb: bool = True, seed: int = 0, **kwargs: Any) -> Any:
        """The loss with gamma .9 and target networks that differ from the online ones."""
        loss = self.cls(*(networks or self.networks(seed)), **{**self.kwargs, **kwargs})
        loss.make_value_estimator(gamma=GAMMA)
        PolyakTargetUpdate(loss, rate=0.5)
        if perturb:
            perturb_targets(loss)
        return loss


@dataclass
class CriticCase(Buildable):
    """Builder of one loss; ``reported``: scalars among its out-keys, ``power``: of the TD error in its priority."""

    cls: Any
    kind: str
    critics: int = 2
    value: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    reported: tuple[str, ...] = ()
    power: int = 2

    sequences = False
    weighted = "loss_qvalue"
    renamed: dict[str, Any] = field(default_factory=dict)

    @property
    def em(self) -> bool:
        """True if the temperature of the batch weights each of its rows."""
        return self.kwargs.get("mode") == "em"

    @property
    def diagnostics(self) -> set[str]:
        more = {VIRELLoss: {"entropy", "bellman_error"}, SoftQLearningLoss: {"ess", "spread"}}
        return {"td_error", "value", "tau", *self.reported} | more.get(self.cls, set())

    @property
    def losses(self) -> list[str]:
        """The losses it returns, sorted."""
        more = ["loss_value"] * self.value + ["loss_alpha"] * ("target_entropy" in self.kwargs)
        return sorted(["loss_actor", "loss_qvalue", *more])

    def networks(self, seed: int = 0, **keys: Any) -> list[Any]:
        nets = [make_actor(self.kind, seed, **keys), [make_critic(seed + 1 + i, **keys) for i in range(self.critics)]]
        if self.value:
            torch.manual_seed(seed + 9)
            nets.append(ValueOperator(mlp(NUM_OBSERVATIONS, 1), in_keys=[keys.get("in_key", "observation")]))
        return nets

    def batch(self, *shape: int, **how: Any) -> TensorDict:
        return transitions(*shape, actions="box", **how)


def lagged(loss: Any) -> list[Tensor]:
    """The target parameters, not the buffers beside them, such as the bins of an actor."""
    out = []
    for name in loss._network_names:
        if f"target_{name}_params" in loss._modules:
            target = loss._modules[f"target_{name}_params"]
            online = getattr(loss, f"{name}_params").items(True, True)
            out += [target.get(key) for key, p in online if p.requires_grad]
    return out


def perturb_targets(loss: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for p in lagged(loss):
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))


_BELLMAN = {"tau": 0.5, "beta_scale": 0.3}
_SAC: dict[str, Any] = {"reported": ("alpha", "entropy"), "power": 1}
_SAMPLED = {"tau": 0.5, "num_value_samples": 5, "num_particles": 6}
CASES = {
    "virel": CriticCase(VIRELLoss, "gaussian", kwargs=_BELLMAN),
    "virel_flow": CriticCase(VIRELLoss, "flow", 1, kwargs={**_BELLMAN, "exponent": 1.0}),
    "virel_value": CriticCase(VIRELLoss, "gaussian", 1, value=True, kwargs=_BELLMAN),
    "virel_fixed": CriticCase(VIRELLoss, "gaussian", 3, kwargs={"tau": 0.5}),
    "virel_em": CriticCase(VIRELLoss, "gaussian", kwargs={**_BELLMAN, "mode": "em"}),
    "sac": CriticCase(SoftActorCriticLoss, "gaussian", kwargs={"tau": 0.5, "target_entropy": 1.3}, **_SAC),
    "sac_fixed": CriticCase(SoftActorCriticLoss, "flow", 1, kwargs={"tau": 0.5}, **_SAC),
    "soft_q": CriticCase(SoftQLearningLoss, "sampler", 1, kwargs=_SAMPLED),
    "soft_q_twin": CriticCase(SoftQLearningLoss, "sampler", 2, kwargs=_SAMPLED),
    "soft_q_published": CriticCase(SoftQLearningLoss, "sampler", 1, kwargs={**_SAMPLED, "form": "haarnoja2017"}),
    "soft_q_flow": CriticCase(SoftQLearningLoss, "flow", 1, kwargs={**_SAMPLED, "proposal": "actor"}),
}
