"""Every Q-learning loss of the package over a small network, and with the policy losses the table of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import critic_cases
import policy_cases
import torch
from critic_cases import NUM_ACTIONS, NUM_OBSERVATIONS
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor

from torchrl_reg import objectives
from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor, ImplicitQuantileNetwork, QuantileQActor


@dataclass
class LossCase(critic_cases.Buildable):
    """Builder of one loss, at values where a wrong sign or a missing factor is visible."""

    cls: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: What the network gives: expected values, quantiles at drawn (implicit) or at fixed fractions, atoms.
    head: str = "expected"

    reported = ()
    sequences = False
    weighted = "loss"
    #: Keys that nested networks write, for ``set_keys``.
    renamed = {"action_value": ("agent", "action_value"), "value": ("agent", "chosen_action_value")}

    @property
    def losses(self) -> list[str]:
        return ["loss", "loss_prior"] if self.cls is with_prior_network else ["loss"]

    @property
    def diagnostics(self) -> set[str]:
        """Names of what it reports beside the loss: of the regularizer, the shaping and the grid."""
        given = self.kwargs.keys()
        names = {"action_gap", "td_error"} | given & {"tau", "beta"}
        if given & {"tau", "beta"}:
            names |= {"entropy", "soft_gap", "support" if self.cls is objectives.SparseDQNLoss else "kl"}
        named = {
            "beta": ["prior_entropy", "mutual_information", "squared_td_error"],
            "beta_scale": ["squared_td_error"],
        }
        named |= {"alpha": ["bonus"], "clip_min": ["bonus_clipped"]}
        names |= {name for key in given & named.keys() for name in named[key]}
        return names | ({"clipped_mass"} if self.head == "atoms" else set())

    def networks(self, seed: int = 0, **keys: Any) -> list[Any]:
        if keys:
            keys |= {f"{name}_key": ("agent", name) for name in ("action_value", "chosen_action_value")}
        return [self.actor(seed=seed, **keys)]

    def batch(self, *shape: int, **how: Any) -> TensorDict:
        return critic_cases.transitions(*shape, **how)

    def actor(self, *, one_hot: bool = False, seed: int = 0, in_key: Any = "observation", **kwargs: Any) -> QValueActor:
        torch.manual_seed(seed)
        kwargs |= {"spec": OneHot(NUM_ACTIONS) if one_hot else Categorical(NUM_ACTIONS), "in_keys": [in_key]}
        if self.head == "implicit":
            torso = nn.Sequential(nn.Linear(NUM_OBSERVATIONS, 8), nn.Tanh())
            net = ImplicitQuantileNetwork(torso, num_features=8, num_actions=NUM_ACTIONS, num_cosines=6, num_cells=16)
            return QuantileQActor(net, num_quantiles=4, **kwargs)
        net = critic_cases.mlp(NUM_OBSERVATIONS, {"expected": 1, "fixed": 5, "atoms": 7}[self.head] * NUM_ACTIONS)
        if self.head == "fixed":
            return FixedQuantileQActor(net, num_quantiles=5, **kwargs)
        if self.head == "atoms":
            return CategoricalQActor(net, num_atoms=7, value_min=-3.0, value_max=4.0, **kwargs)
        return QValueActor(net, **kwargs)

    def loss(self, actor: Any = None, **how: Any) -> Any:
        """The loss with gamma .9 and a target network that differs from the online one."""
        return super().loss(actor if actor is None or isinstance(actor, list) else [actor], **how)


def with_prior_network(actor: Any, **kwargs: Any) -> objectives.MutualInformationDQNLoss:
    """MIRL whose prior depends on the state."""
    torch.manual_seed(4)
    linear = nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS).to(next(actor.parameters()).device)
    network = TensorDictModule(linear, getattr(actor, "in_keys", ["observation"])[:1], ["log_prior"])
    return objectives.MutualInformationDQNLoss(actor, prior_network=network, **kwargs)


_COUNTS = {"num_quantiles": 5, "num_target_quantiles": 7, "num_policy_quantiles": 3, "kappa": 0.5}
_M = {"tau": 0.5, "alpha": 0.5, "clip_min": -0.3}
_REUSE = {"reuse_quantiles": True}
_P = {"prior": (0.6, 0.3, 0.1), "beta": 2.0}
CASES = {
    "soft_dqn": LossCase(objectives.SoftDQNLoss, {"tau": 0.5}),
    "m_dqn": LossCase(objectives.MunchausenDQNLoss, _M),
    "al": LossCase(objectives.AdvantageLearningLoss, {"alpha": 0.5}),
    "pal": LossCase(objectives.AdvantageLearningLoss, {"alpha": 0.5, "persistent": True}),
    "iqn": LossCase(objectives.IQNLoss, _COUNTS, head="implicit"),
    "iqn_double": LossCase(objectives.IQNLoss, {**_COUNTS, "double_dqn": True}, head="implicit"),
    "iqn_reuse": LossCase(objectives.IQNLoss, {**_COUNTS, **_REUSE}, head="implicit"),
    "m_iqn": LossCase(objectives.MunchausenIQNLoss, {**_COUNTS, **_M}, head="implicit"),
    "m_iqn_reuse": LossCase(objectives.MunchausenIQNLoss, {**_COUNTS, **_M, **_REUSE}, head="implicit"),
    "mirl": LossCase(objectives.MutualInformationDQNLoss, _P),
    "mirl_network": LossCase(with_prior_network, _P),
    "mi_iqn": LossCase(objectives.MutualInformationIQNLoss, {**_COUNTS, **_P}, head="implicit"),
    "mi_iqn_reuse": LossCase(objectives.MutualInformationIQNLoss, {**_COUNTS, **_P, **_REUSE}, head="implicit"),
    "c51": LossCase(objectives.CategoricalDQNLoss, head="atoms"),
    "m_c51": LossCase(objectives.MunchausenCategoricalLoss, _M, head="atoms"),
    "qr": LossCase(objectives.QuantileRegressionDQNLoss, {"kappa": 0.5}, head="fixed"),
    "qr_double": LossCase(objectives.QuantileRegressionDQNLoss, {"kappa": 0.5, "double_dqn": True}, head="fixed"),
    "sparse": LossCase(objectives.SparseDQNLoss, {"tau": 0.5}),
    "virel_q": LossCase(objectives.DiscreteVIRELLoss, {"tau": 0.5, "beta_scale": 0.3}),
    "soft_double": LossCase(objectives.SoftDQNLoss, {"tau": 0.5, "double_dqn": True}),
    "m_iqn_shared": LossCase(objectives.MunchausenIQNLoss, {**_COUNTS, **_M, "share_fractions": True}, head="implicit"),
}


#: All losses of the package.
ALL: dict[str, Any] = {**CASES, **policy_cases.CASES, **critic_cases.CASES}
