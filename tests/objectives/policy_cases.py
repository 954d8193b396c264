"""Losses over a policy, over every kind of actor, and batches of another policy's actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import critic_cases
import torch
from critic_cases import BOX, NUM_OBSERVATIONS, Buildable, transitions
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator

from torchrl_reg.modules import MulticategoricalActor
from torchrl_reg.objectives import ImplicitQLoss, PathConsistencyLoss

LENGTH = 5
BINS = {"multicategorical": 5, "ragged": [3, 5]}


def mlp(outputs: int, lazy: bool = False) -> nn.Module:
    if lazy:
        return nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(outputs))
    return nn.Sequential(nn.Linear(NUM_OBSERVATIONS, 16), nn.Tanh(), nn.Linear(16, outputs))


def make_actor(
    kind: str, seed: int = 0, in_key: Any = "observation", action_key: Any = "action", lazy: bool = False
) -> Any:
    torch.manual_seed(seed)
    if kind == "categorical":
        module = TensorDictModule(mlp(3, lazy), in_keys=[in_key], out_keys=["logits"])
        return ProbabilisticActor(
            module, in_keys=["logits"], out_keys=[action_key], distribution_class=Categorical, return_log_prob=True
        )
    if kind not in BINS:
        return critic_cases.make_actor(kind, seed, in_key, action_key)
    bins, keys = BINS[kind], {"in_keys": [in_key], "action_key": action_key}
    return MulticategoricalActor(mlp(10 if isinstance(bins, int) else sum(bins), lazy), **BOX, **keys, num_bins=bins)


def make_value(seed: int = 1, in_key: Any = "observation", lazy: bool = False) -> ValueOperator:
    torch.manual_seed(seed)
    return ValueOperator(mlp(1, lazy), in_keys=[in_key])


@dataclass
class PolicyCase(Buildable):
    """Builder of one loss, at values where a wrong sign or a missing factor is visible."""

    cls: Any
    kind: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    unified: bool = False

    losses = ("loss",)
    reported: tuple[str, ...] = ()
    weighted = "loss"
    renamed: dict[str, Any] = field(default_factory=dict)

    @property
    def sequences(self) -> bool:
        return self.cls is PathConsistencyLoss

    @property
    def diagnostics(self) -> set[str]:
        names = {"td_error", "value", "log_pi", "tau"}
        names |= set() if self.kind in ("gaussian", "flow") else {"entropy"}
        names |= {"path_error"} if self.sequences else set()
        names |= {"bonus", "bonus_clipped", "kl"} if self.kwargs.get("alpha") else set()
        return names | ({"kl", "lam"} if self.kwargs.get("lam") else set())

    def networks(self, seed: int = 0, **keys: Any) -> tuple[Any, Any]:
        actor = make_actor(self.kind, seed, **keys)
        keys.pop("action_key", None)
        return actor, None if self.unified else make_value(seed + 1, **keys)

    def batch(self, *shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> TensorDict:
        """Actions of another policy; rows that end, and how. Sequences get a last dimension of 5 steps."""
        shape = (*shape, LENGTH) if self.sequences else shape
        data = transitions(*shape, seed=seed, dtype=dtype, actions="none")
        if self.sequences:  # each step starts where the one before led, or anew
            led, done = data["next", "observation"][..., :-1, :], data["next", "done"][..., :-1, :]
            data["observation"][..., 1:, :] = torch.where(done, data["observation"][..., 1:, :], led)
        behaviour = make_actor(self.kind, seed=100).to(dtype)
        torch.manual_seed(seed)
        with torch.no_grad():
            acted = behaviour(data.select("observation"))
        data["action"] = acted["action"]
        if self.kind in BINS:
            data["action_index"] = acted["action_index"]  # for the tests to compare with; no loss reads it
        return data


# -- the networks of a loss over a discrete policy, called without it -------------------------------------------------


def log_tables(loss: Any, data: TensorDict, *, lagged: bool = False) -> list[Tensor]:
    """``ln pi [*B, K]`` of every action dimension at the states of ``data``, from the logits."""
    actor, params = loss.actor_network, loss.target_actor_network_params if lagged else loss.actor_network_params
    bins = hasattr(actor, "bins")
    with params.to_module(actor):
        logits = (actor.network if bins else actor.module[0].module)(data["observation"])
    return [part.log_softmax(-1) for part in logits.split(list(actor.bins.num_bins) if bins else [3], -1)]


def log_prob(tables: list[Tensor], data: TensorDict) -> Tensor:
    """``ln pi(a|s) [*B]`` of the stored actions."""
    index = data["action_index"] if "action_index" in data else data["action"].unsqueeze(-1)
    picked = [table.gather(-1, index[..., d : d + 1]) for d, table in enumerate(tables)]
    return torch.cat(picked, -1).sum(-1)


def state_value(loss: Any, observation: Tensor, *, lagged: bool = False) -> Tensor:
    """``V(s) [*B]``."""
    with (loss.target_value_network_params if lagged else loss.value_network_params).to_module(loss.value_network):
        return loss.value_network.module(observation).squeeze(-1)


def assert_same(ours: Tensor, theirs: Tensor, loss: Any, other: Any) -> None:
    """Equal values, with equal gradients of the parameters of ``loss`` and ``other``."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    mine = torch.autograd.grad(ours, list(loss.parameters()))
    torch.testing.assert_close(mine, torch.autograd.grad(theirs, list(other.parameters())), rtol=0, atol=1e-12)


_IQ = {"tau": 0.5, "alpha": 0.5, "clip_min": -1.5}  # of products of bins; -0.3 would clip all of them
_M = {"tau": 0.5, "alpha": 0.5, "clip_min": -0.3}
_PCL = {"tau": 0.5, "lam": 0.3, "rollout": 3}
CASES = {
    "iq": PolicyCase(ImplicitQLoss, "multicategorical", {"tau": 0.5}),
    "m_iq": PolicyCase(ImplicitQLoss, "multicategorical", _IQ),
    "m_iq_ragged": PolicyCase(ImplicitQLoss, "ragged", _IQ),
    "m_iq_categorical": PolicyCase(ImplicitQLoss, "categorical", _M),
    "m_iq_gaussian": PolicyCase(ImplicitQLoss, "gaussian", _M),
    "m_iq_flow": PolicyCase(ImplicitQLoss, "flow", _M),
    "m_iq_residual": PolicyCase(ImplicitQLoss, "multicategorical", {**_IQ, "residual": True}),
    "pcl": PolicyCase(PathConsistencyLoss, "multicategorical", {**_PCL, "lam": 0.0}),
    "trust_pcl": PolicyCase(PathConsistencyLoss, "multicategorical", _PCL),
    "trust_pcl_categorical": PolicyCase(PathConsistencyLoss, "categorical", _PCL),
    "trust_pcl_gaussian": PolicyCase(PathConsistencyLoss, "gaussian", _PCL),
    "trust_pcl_delayed": PolicyCase(PathConsistencyLoss, "ragged", {**_PCL, "delay_value": True}),
    "trust_pcl_unified": PolicyCase(PathConsistencyLoss, "multicategorical", _PCL, unified=True),
}
