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
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor

from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor, ImplicitQuantileNetwork, QuantileQActor
from torchrl_reg.objectives import (
    AdvantageLearningLoss,
    CategoricalDQNLoss,
    IQNLoss,
    MunchausenCategoricalLoss,
    MunchausenDQNLoss,
    MunchausenIQNLoss,
    MutualInformationDQNLoss,
    MutualInformationIQNLoss,
    PolyakTargetUpdate,
    QuantileRegressionDQNLoss,
    SoftDQNLoss,
    SparseDQNLoss,
)

sys.path.insert(0, str(Path(__file__).parent))  # the tables of losses and parameter_sets, here and in the rooms below

import critic_cases
import policy_cases

NUM_OBSERVATIONS, NUM_ACTIONS, GAMMA = 4, 3, 0.9


@dataclass
class LossCase:
    """How to build one loss, at values where a wrong sign or a forgotten factor shows."""

    cls: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: What the network gives: expected values, quantiles at drawn or at fixed fractions, atoms.
    head: str = "expected"

    @property
    def quantile(self) -> bool:
        """Whether the loss draws fractions."""
        return self.head == "implicit"

    losses = ("loss",)
    reported = ()
    sequences = False
    weighted = "loss"

    @property
    def diagnostics(self) -> set[str]:
        """Names of what it reports beside the loss: of the regularizer, the shaping and the grid."""
        entropy = {"entropy", "kl", "soft_gap", "tau"} if "tau" in self.kwargs else set()
        if self.cls is SparseDQNLoss:
            entropy = {"entropy", "support", "soft_gap", "tau"}
        if "beta" in self.kwargs:
            entropy = {"entropy", "kl", "soft_gap", "prior_entropy", "mutual_information", "beta", "squared_td_error"}
        shaping = {"bonus"} if "alpha" in self.kwargs else set()
        shaping |= {"bonus_clipped"} if "clip_min" in self.kwargs else set()
        return {"action_gap", "td_error"} | entropy | shaping | ({"clipped_mass"} if self.head == "atoms" else set())

    @property
    def renamed(self) -> dict[str, Any]:
        """Keys that nested networks write, for ``set_keys``."""
        return {"action_value": ("agent", "action_value"), "value": ("agent", "chosen_action_value")}

    def networks(self, seed: int = 0, **keys: Any) -> list[Any]:
        if keys:
            keys |= {f"{name}_key": ("agent", name) for name in ("action_value", "chosen_action_value")}
        return [self.actor(seed=seed, **keys)]

    def batch(self, *shape: int, **how: Any) -> TensorDict:
        return make_batch(*shape, **how)

    @property
    def distributional(self) -> bool:
        return self.head != "expected"

    def actor(self, *, one_hot: bool = False, seed: int = 0, in_key: Any = "observation", **kwargs: Any) -> QValueActor:
        torch.manual_seed(seed)
        spec = OneHot(NUM_ACTIONS) if one_hot else Categorical(NUM_ACTIONS)
        if self.head in ("fixed", "atoms"):
            size = {"fixed": 5, "atoms": 7}[self.head]
            net = nn.Sequential(nn.Linear(NUM_OBSERVATIONS, 16), nn.Tanh(), nn.Linear(16, size * NUM_ACTIONS))
            if self.head == "fixed":
                return FixedQuantileQActor(net, num_quantiles=size, spec=spec, in_keys=[in_key], **kwargs)
            grid = {"num_atoms": size, "value_min": -3.0, "value_max": 4.0}
            return CategoricalQActor(net, **grid, spec=spec, in_keys=[in_key], **kwargs)
        if self.quantile:
            torso = nn.Sequential(nn.Linear(NUM_OBSERVATIONS, 8), nn.Tanh())
            net = ImplicitQuantileNetwork(torso, num_features=8, num_actions=NUM_ACTIONS, num_cosines=6, num_cells=16)
            return QuantileQActor(net, spec=spec, in_keys=[in_key], num_quantiles=4, **kwargs)
        net = nn.Sequential(nn.Linear(NUM_OBSERVATIONS, 16), nn.Tanh(), nn.Linear(16, NUM_ACTIONS))
        return QValueActor(net, spec=spec, in_keys=[in_key], **kwargs)

    def loss(self, actor: Any = None, *, perturb: bool = True, seed: int = 0, **kwargs: Any) -> Any:
        """The loss with gamma .9 and a target network that differs from the online one."""
        actor = actor[0] if isinstance(actor, list) else actor
        loss = self.cls(self.actor(seed=seed) if actor is None else actor, **{**self.kwargs, **kwargs})
        loss.make_value_estimator(gamma=GAMMA)
        PolyakTargetUpdate(loss, rate=0.5)
        if perturb and loss.delay_value:
            perturb_target(loss)
        return loss


def perturb_target(loss: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for p in loss.target_value_network_params.values(True, True):
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))


_COUNTS = {"num_quantiles": 5, "num_target_quantiles": 7, "num_policy_quantiles": 3, "kappa": 0.5}
_M = {"tau": 0.5, "alpha": 0.5, "clip_min": -0.3}
_P = {"prior": (0.6, 0.3, 0.1), "beta": 2.0}
CASES = {
    "soft_dqn": LossCase(SoftDQNLoss, {"tau": 0.5}),
    "m_dqn": LossCase(MunchausenDQNLoss, _M),
    "al": LossCase(AdvantageLearningLoss, {"alpha": 0.5}),
    "pal": LossCase(AdvantageLearningLoss, {"alpha": 0.5, "persistent": True}),
    "iqn": LossCase(IQNLoss, _COUNTS, head="implicit"),
    "iqn_double": LossCase(IQNLoss, {**_COUNTS, "double_dqn": True}, head="implicit"),
    "iqn_reuse": LossCase(IQNLoss, {**_COUNTS, "reuse_quantiles": True}, head="implicit"),
    "m_iqn": LossCase(MunchausenIQNLoss, {**_COUNTS, **_M}, head="implicit"),
    "m_iqn_reuse": LossCase(MunchausenIQNLoss, {**_COUNTS, **_M, "reuse_quantiles": True}, head="implicit"),
    "mirl": LossCase(MutualInformationDQNLoss, _P),
    "mi_iqn": LossCase(MutualInformationIQNLoss, {**_COUNTS, **_P}, head="implicit"),
    "mi_iqn_reuse": LossCase(MutualInformationIQNLoss, {**_COUNTS, **_P, "reuse_quantiles": True}, head="implicit"),
    "c51": LossCase(CategoricalDQNLoss, head="atoms"),
    "m_c51": LossCase(MunchausenCategoricalLoss, _M, head="atoms"),
    "qr": LossCase(QuantileRegressionDQNLoss, {"kappa": 0.5}, head="fixed"),
    "qr_double": LossCase(QuantileRegressionDQNLoss, {"kappa": 0.5, "double_dqn": True}, head="fixed"),
    "sparse": LossCase(SparseDQNLoss, {"tau": 0.5}),
    "soft_double": LossCase(SoftDQNLoss, {"tau": 0.5, "double_dqn": True}),
    "m_iqn_shared": LossCase(MunchausenIQNLoss, {**_COUNTS, **_M, "share_fractions": True}, head="implicit"),
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


def make_batch(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*shape, *size, generator=generator, dtype=torch.float64).to(dtype)

    def flags(share: float) -> torch.Tensor:
        return torch.rand(*shape, 1, generator=generator) < share

    terminated, truncated = flags(0.3), flags(0.3)
    return TensorDict(
        {
            "observation": 2 * normal(NUM_OBSERVATIONS),
            "action": torch.randint(NUM_ACTIONS, shape, generator=generator),
            "next": {
                "observation": 2 * normal(NUM_OBSERVATIONS),
                "reward": normal(1),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        shape,
    )


@pytest.fixture
def batch() -> Callable[..., TensorDict]:
    return make_batch


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
        for part in ("scalars", "gradients"):
            assert found[part].keys() == expected[part].keys(), part
            for key, values in expected[part].items():
                torch.testing.assert_close(
                    torch.tensor(found[part][key], dtype=torch.float64),
                    torch.tensor(values, dtype=torch.float64),
                    rtol=1e-12,
                    atol=1e-12,
                    msg=lambda text, key=key: f"{name} {key}: {text}",
                )
        # Rows that do not count have priority 0; when this was recorded, what their network said by itself.
        mask = data.get(("collector", "mask"), torch.ones_like(data["td_error"], dtype=torch.bool)).flatten()
        priority = torch.tensor(expected["priority"], dtype=torch.float64)
        got = torch.tensor(found["priority"], dtype=torch.float64)
        torch.testing.assert_close(got, torch.where(mask, priority, 0.0), rtol=1e-12, atol=1e-12)

    yield check
    if recording:
        rows = [f"{json.dumps(name)}: {json.dumps(recorded[name])}" for name in sorted(recorded)]
        GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
