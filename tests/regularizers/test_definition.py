"""A regularizer of one's own needs a forward pass and the names of its coefficients; what all of them keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_reg import load_policy
from torchrl_reg.agents import save_policy
from torchrl_reg.agents.description import Undescribed, built, described
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import Munchausen, QLearningLoss
from torchrl_reg.objectives.shaping import Shaping
from torchrl_reg.regularizers import (
    ActionPrior,
    Boltzmann,
    Coefficient,
    DualCoefficient,
    Entropy,
    HardMax,
    PriorKL,
    Regularized,
    Regularizer,
    Tsallis,
    check_regularizer,
)

RHO = [0.4, 0.3, 0.2, 0.1]


class ReverseKL(Regularizer):
    """``Omega(pi) = tau KL(uniform || pi)``, as a user writes it."""

    coefficient_names = ("tau",)

    def __init__(self, tau: Any) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = q if q.dtype == torch.float64 else q.float()
        allowed = q > torch.finfo(q.dtype).min if mask is None else mask & (q > torch.finfo(q.dtype).min)
        share = allowed / allowed.sum(-1, keepdim=True)
        tau = self.tau.to(q.dtype)
        x = torch.where(allowed, q, -torch.inf)
        best = x.amax(-1, keepdim=True)
        # pi = tau share / (level - q) sums to one at a level between best + tau share and best + tau.
        low, high = best.clone(), best + tau
        for _ in range(80):
            middle = (low + high) / 2
            too_much = torch.where(allowed, tau * share / (middle - x), 0.0).sum(-1, keepdim=True) > 1
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        pi = torch.where(allowed, tau * share / (high - x), 0.0).detach()
        pi = pi / pi.sum(-1, keepdim=True)
        cost = -(tau * torch.where(allowed, share * (pi / share).log(), 0.0)).sum(-1)
        tau_log_pi = torch.where(allowed, tau - tau * share / pi + cost.unsqueeze(-1), -torch.inf)
        value = (pi * torch.where(allowed, q, 0.0)).sum(-1) - cost
        return Regularized(pi, cost, value, tau_log_pi, torch.where(allowed, tau_log_pi, 0.0))


class LogPolicy(ReverseKL):
    """The first natural misreading: ``tau_log_pi = tau ln pi``."""

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        out = super().forward(q, mask=mask)
        return out._replace(tau_log_pi=self.tau * out.pi.log())


class Shifted(ReverseKL):
    """The second: the gradient of Omega as it is."""

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        out = super().forward(q, mask=mask)
        return out._replace(tau_log_pi=-self.tau / out.pi / out.pi.shape[-1])


OURS = {
    "hard_max": HardMax,
    "entropy": lambda: Entropy(0.5),
    "prior_kl": lambda: PriorKL(0.5, prior=RHO),
    "uniform_kl": lambda: PriorKL(0.3),
    "action_prior": lambda: PriorKL(prior=ActionPrior(4, probabilities=RHO, beta=2.0)),
    "tsallis": lambda: Tsallis(0.5),
    "tsallis_1.5": lambda: Tsallis(0.5, q=1.5),
    "reverse_kl": lambda: ReverseKL(0.5),
}


@pytest.mark.parametrize("name", OURS)
def test_every_regularizer_keeps_the_definition(name: str) -> None:
    check_regularizer(OURS[name](), num_actions=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LogPolicy, "<pi, tau_log_pi> as its cost"),
        (Shifted, "<pi, tau_log_pi> as its cost"),
        (Boltzmann, "<pi, tau_log_pi> as its cost"),
    ],
)
def test_one_that_does_not_is_told_what(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{wrong.__name__} must have {message}, got a difference of"):
        check_regularizer(wrong(0.5))


@pytest.mark.parametrize(
    ("field", "spoil", "message"),
    [
        ("pi", lambda out: 1.1 * out.pi, "a pi that sums to one"),
        ("value", lambda out: out.value + 0.1, "<pi, q> - cost as its value"),
        ("pi", lambda out: out.pi.flip(-1), "<pi, q> - cost as its value"),
        ("tau_log_pi", lambda out: out.tau_log_pi - out.tau_log_pi, "<pi, tau_log_pi> as its cost"),
        ("action_cost", lambda out: 2 * out.action_cost, "action_cost = tau_log_pi"),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, spoil: Any, message: str) -> None:
    class Spoilt(Entropy):
        def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
            out = super().forward(q, mask=mask)
            return out._replace(**{field: spoil(out)})

    with pytest.raises(ValueError, match=message):
        check_regularizer(Spoilt(0.5))


def test_a_declared_coefficient_is_an_attribute() -> None:
    regularizer = ReverseKL(0.5)
    assert float(regularizer.tau) == 0.5 and list(regularizer.coefficients()) == ["tau"]
    twin = copy.deepcopy(regularizer)
    regularizer.tau = 0.25
    assert regularizer.scalars() == {"tau": 0.25} and float(twin.tau) == 0.5
    twin.load_state_dict(regularizer.state_dict())
    assert float(twin.tau) == 0.25
    with pytest.raises(ValueError, match="tau must be a finite number > 0"):
        regularizer.tau = -1.0
    learnt = DualCoefficient(0.5, target=0.7, rises="below", name="tau")
    assert ReverseKL(learnt).coefficients()["tau"] is learnt

    class Forgetful(ReverseKL):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    with pytest.raises(AttributeError, match="Forgetful must set self.tau in its constructor"):
        Forgetful().coefficients()


class Bonus(Shaping):
    """A shaping of one's own."""

    coefficient_names = ("weight",)

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, q: Tensor, tau_log_pi: Tensor, action: Tensor, **_: Any) -> Tensor:
        return self.weight * tau_log_pi.mean(-1)


def data(rows: int = 6) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    flags = {name: torch.zeros(rows, 1, dtype=torch.bool) for name in ("done", "terminated")}
    following = {"observation": torch.randn(rows, 4, generator=generator), "reward": torch.ones(rows, 1), **flags}
    state = {"observation": torch.randn(rows, 4, generator=generator), "action": torch.arange(rows) % 3}
    return TensorDict({**state, "next": following}, [rows])


@pytest.mark.parametrize("learnt", [False, True])
def test_a_loss_takes_it_with_all_it_reports(learnt: bool) -> None:
    torch.manual_seed(0)  # one where both clips act
    tau = DualCoefficient(0.5, target=0.7, rises="below", name="tau") if learnt else 0.5
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    loss = QLearningLoss(actor, regularizer=ReverseKL(tau), shaping=Munchausen(0.5, -0.3), delay_value=False)
    out = loss(data())
    assert {"tau", "entropy", "soft_gap", "action_gap", "bonus", "bonus_clipped"} <= set(out.keys())
    with torch.no_grad():
        q = actor(data())["action_value"]
        policy = loss.regularizer(q)
        taken = policy.tau_log_pi.gather(-1, data()["action"].unsqueeze(-1)).squeeze(-1)
    assert (taken > 0).any() and (taken < -0.3).any(), "both clips act"
    torch.testing.assert_close(out["bonus_clipped"], ((taken > 0) | (taken < -0.3)).float().mean())
    torch.testing.assert_close(out["bonus"], (0.5 * taken.clamp(-0.3, 0.0)).mean())
    torch.testing.assert_close(out["entropy"], torch.special.entr(policy.pi).sum(-1).mean())
    assert ("loss_tau" in dict(out.items())) == learnt
    shaped = QLearningLoss(actor, regularizer=ReverseKL(0.5), shaping=Bonus(0.3), delay_value=False)
    assert shaped(data())["loss"].isfinite() and float(shaped.shaping.weight) == pytest.approx(0.3)


def test_its_policy_is_saved_and_read(tmp_path: Path) -> None:
    env = make_env(EnvSettings("cartpole"), num_envs=1)
    spec = env.full_action_spec_unbatched["action"]
    for regularizer in (
        ReverseKL(0.5),
        Boltzmann(tau=Coefficient(0.4, name="tau")),
        PriorKL(0.5, prior=[0.7, 0.3]),
        Tsallis(0.3, q=1.5),
    ):
        actor = BoltzmannQActor(QValueActor(q_network(NetSettings(), env), spec=spec), regularizer=regularizer)
        regularizer.tau = 0.2
        save_policy(tmp_path / "p", actor)
        read = load_policy(tmp_path / "p")
        assert type(read.regularizer) is type(regularizer) and float(read.tau) == 0.2
        q = torch.randn(5, 2)
        torch.testing.assert_close(read.regularizer.policy(q), regularizer.policy(q), rtol=0, atol=0)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            seen = TensorDict({"observation": torch.randn(8, 4)}, [8])
            assert torch.equal(read(seen.clone())["action"], actor(seen.clone())["action"])


def test_a_regularizer_that_no_file_may_name() -> None:
    env = make_env(EnvSettings("cartpole"), num_envs=1)
    network = q_network(NetSettings(), env)
    actor = QValueActor(network, spec=env.full_action_spec_unbatched["action"])
    said = described(BoltzmannQActor(actor, regularizer=Tsallis(0.3, q=1.5)))
    assert built(said).regularizer.q == 1.5
    for path, expected in {"os:system": "says that a file may name it", "none:Such": "is imported before"}.items():
        said["kwargs"]["regularizer"] = {"call": path, "args": ["true"], "kwargs": {}}
        with pytest.raises(ValueError, match=f"call must name what {expected}.*, got '{path}'"):
            built(said)

    class OfANetwork(Entropy):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(0.5)

    with pytest.raises(Undescribed, match="no description of Linear"):
        described(BoltzmannQActor(actor, regularizer=OfANetwork(nn.Linear(1, 1))))
