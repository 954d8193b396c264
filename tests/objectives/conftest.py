"""Losses over a small Q-network, and a batch with off-greedy actions, terminal and truncated rows."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor

from torchrl_reg import objectives
from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor, ImplicitQuantileNetwork, QuantileQActor

sys.path.insert(0, str(Path(__file__).parent))  # the tables of losses and parameter_sets, here and in the rooms below

import critic_cases
import policy_cases
from critic_cases import NUM_ACTIONS, NUM_OBSERVATIONS


@dataclass
class LossCase(critic_cases.Buildable):
    """How to build one loss, at values where a wrong sign or a forgotten factor shows."""

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


#: Every loss of the package, whatever its networks.
ALL: dict[str, Any] = {**CASES, **policy_cases.CASES, **critic_cases.CASES}


@pytest.fixture(params=list(ALL))
def any_case(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]


@pytest.fixture
def all_cases() -> dict[str, Any]:
    return ALL


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> LossCase:
    return CASES[request.param]


@pytest.fixture
def cases() -> dict[str, LossCase]:
    return CASES


@pytest.fixture
def batch() -> Callable[..., TensorDict]:
    return critic_cases.transitions


GOLDEN = Path(__file__).with_name("golden.json")


def fingerprint(loss: Any, data: Any, seed: int = 11) -> dict[str, Any]:
    """What one call of a float64 loss gives: every scalar, the priorities, the gradients seen from four directions."""
    loss.zero_grad()
    torch.manual_seed(seed)
    out = loss(data)
    terms = [value for name, value in out.items() if name.startswith("loss")]
    sum(term.sum() for term in terms).backward()
    gradients: dict[str, list[float]] = {}
    networks = {name: getattr(loss, f"{name}_params").flatten_keys(".") for name in loss._network_names}
    if getattr(loss, "prior_network", None) is not None:
        networks["prior_network"] = dict(loss.prior_network.named_parameters())
    for name, flat in networks.items():
        for key in sorted(flat.keys()):
            gradient = getattr(flat.get(key), "grad", None)
            if gradient is not None:
                generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
                views = torch.randn(4, gradient.numel(), generator=generator, dtype=torch.float64)
                gradients[f"{name}.{key}"] = (views @ gradient.flatten().double()).tolist()
    return {
        "scalars": {name: value.detach().double().flatten().tolist() for name, value in sorted(out.items())},
        "priority": data["td_error"].flatten().tolist(),
        "gradients": gradients,
    }


def _tensors(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _tensors(values) for key, values in found.items()}
    return torch.as_tensor(found, dtype=torch.float64)


@pytest.fixture(scope="session")
def golden() -> Iterator[Callable[..., None]]:
    """Compares a loss's fingerprint with the recorded one (``RECORD_GOLDEN=1`` records instead), in float64."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    recording = os.environ.get("RECORD_GOLDEN") == "1"

    def check(name: str, loss: Any, data: Any) -> None:
        found = fingerprint(loss, data)
        if recording:
            recorded[name] = found
            return
        expected = recorded[name]
        # Rows that do not count have priority 0; when this was recorded, what their network said by itself.
        mask = data.get(("collector", "mask"), torch.ones_like(data["td_error"], dtype=torch.bool)).flatten()
        expected["priority"] = torch.where(mask, torch.tensor(expected["priority"], dtype=torch.float64), 0.0)
        for part in ("scalars", "gradients", "priority"):
            torch.testing.assert_close(_tensors(found[part]), _tensors(expected[part]), rtol=1e-12, atol=1e-12)

    yield check
    if recording:
        rows = [f"{json.dumps(name)}: {json.dumps(recorded[name])}" for name in sorted(recorded)]
        GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
