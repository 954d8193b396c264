"""Coefficients that are fixed, scheduled by assignment, learnt by dual ascent, or follow the Bellman error."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.regularizers import (
    BellmanErrorCoefficient,
    Boltzmann,
    Coefficient,
    DualCoefficient,
    Entropy,
    PriorKL,
    Regularizer,
    Tsallis,
    guaranteed_temperature,
)
from torchrl_reg.regularizers.checks import check_weight
from torchrl_reg.tabular import random_mdp, soft_value_iteration


def test_a_value_is_exact_and_stays_so() -> None:
    module = torch.nn.Sequential(Coefficient(0.1))
    for cast in ("float", "half", "double"):
        getattr(module, cast)()
        assert module[0].value.dtype == torch.float64 and float(module[0].value) == 0.1
    held = module[0].value.data_ptr()
    module[0].assign(0.3)
    module[0].assign(torch.tensor(0.25))
    assert float(module[0].value) == 0.25 and module[0].value.data_ptr() == held
    assert module.to("meta")[0].value.device.type == "meta"


def test_a_device_without_float64_gets_float32() -> None:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    tau = Coefficient(0.5)
    tau._apply(move)
    assert tau.value.dtype == torch.float32 and float(tau.value) == 0.5


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), torch.tensor(-1.0), "a", None])
def test_bad_values_are_refused_wherever_they_are_set(bad: object) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        Coefficient(bad, name="weight")
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        Coefficient(0.5, name="weight").assign(bad)
    with pytest.raises(ValueError, match="weight must be"):
        DualCoefficient(bad, target=0.7, rises="below", name="weight")


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_switches_a_coefficient_on_and_off(assign: bool) -> None:
    on, off = (Coefficient(value, name="alpha", check=check_weight) for value in (0.5, 0.0))
    states = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (on, off)]
    off.load_state_dict(states[0], assign=assign)
    on.load_state_dict(states[1], assign=assign)
    assert (off.is_on, float(off.value), on.is_on, float(on.value)) == (True, 0.5, False, 0.0)


@pytest.mark.parametrize(("rises", "sign"), [("above", -1.0), ("below", 1.0)])
def test_it_rises_on_its_side_of_the_target_and_the_statistic_gets_no_gradient(rises: str, sign: float) -> None:
    """Of a KL budget (its weight) above, of an entropy target (a temperature) below."""
    weight = DualCoefficient(0.5, target=0.7, rises=rises)
    statistic = torch.tensor([0.3, 1.5], requires_grad=True)
    weight.objective(statistic).sum().backward()
    torch.testing.assert_close(weight.log_value.grad, torch.tensor(sign * 0.4))
    assert statistic.grad is None and not weight.value.requires_grad


def test_a_learnt_one_is_assigned_saved_and_copied_too() -> None:
    tau, other = (DualCoefficient(value, target=0.7, rises="below") for value in (1.0, 3.0))
    tau.assign(0.25)
    other.load_state_dict(tau.state_dict())
    twin = copy.deepcopy(tau)
    twin.assign(5.0)
    torch.testing.assert_close(torch.stack((tau.value, other.value)), torch.full((2,), 0.25))
    entropy = Entropy(tau)
    entropy.tau = 0.5
    assert tau.value == 0.5 and list(entropy.parameters()) == [tau.log_value]


@pytest.mark.parametrize(
    ("settings", "start", "seen", "expected"),
    [
        ({"rate": 0.25, "scale": 0.5}, 1.0, [0.5], 0.75 + 0.25 * 0.25),
        ({"rate": 0.25, "scale": 0.5, "inverse": True}, 1.0, [0.5], 0.75 + 0.25 * 1.0),
        ({"rate": 0.25, "inverse": True}, 2.0, [0.2], 0.75 * 2 + 0.25 * 5),
        ({"rate": 1.0}, 1.0, [0.7, 0.5], 0.5),
        ({"rate": 1.0, "low": 0.5, "high": 2.0}, 1.0, [100.0], 2.0),
        ({"rate": 1.0, "low": 0.5, "high": 2.0}, 1.0, [0.001], 0.5),
        *(({"rate": 0.25, "inverse": True, "error_floor": 0.01}, 1.0, [x], 0.75 + 25) for x in (0.0, 0.001, 0.01)),
        ({"rate": 0.5, "inverse": True}, 2.0, [torch.nan, torch.inf], 2.0),
    ],
)
def test_the_bellman_error_is_followed(settings: Any, start: float, seen: list[float], expected: float) -> None:
    followed = BellmanErrorCoefficient(start, **settings)
    for error in seen:
        followed.observe(torch.tensor(error, dtype=torch.float64))
    assert float(followed.value) == pytest.approx(expected, rel=1e-12)


def test_a_fixed_one_follows_nothing() -> None:
    fixed, error = Coefficient(0.5), torch.tensor(0.3)
    assert fixed.observe(error) is None and fixed.objective(error) is None and float(fixed.value) == 0.5


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DualCoefficient(1.0, target=0.5, rises="up"), "rises must be 'above' or 'below', got 'up'"),
        (lambda: DualCoefficient(1.0, target=float("nan"), rises="above"), "target must be a finite number"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, low=0.0), "low <= high"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, low=2.0, high=1.0), "low <= high"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, error_floor=0.0), "error_floor"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.0), r"rate must be in \(0, 1\], got"),
    ],
)
def test_bad_arguments(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


PRIOR = [0.1, 0.2, 0.3, 0.4]
#: Each with its k, of four actions.
KINDS: dict[str, tuple[Callable[[Any], Regularizer], float]] = {
    "entropy": (Entropy, math.log(4)),
    "sparsemax": (Tsallis, 3 / 8),
    "tsallis-1.5": (lambda tau: Tsallis(tau, q=1.5), (1 - 0.5) / 0.75),
    "uniform prior": (PriorKL, math.log(4)),
    "prior": (lambda tau: PriorKL(tau, prior=PRIOR), -math.log(0.1)),
    "boltzmann": (Boltzmann, math.log(4)),
}


class MDPs(NamedTuple):
    """``N`` of them: ``P [N, S, A, S]``, ``r [N, S, A]``, ``gamma [N, 1, 1]``."""

    P: Tensor
    r: Tensor
    gamma: Tensor

    def backup(self, v: Tensor) -> Tensor:
        return self.r + self.gamma * torch.einsum("nsat,nt->nsa", self.P, v)

    def value_of(self, pi: Tensor) -> Tensor:
        """Of a policy ``[N, S, A]``, without costs: ``[N, S]``."""
        transition = torch.einsum("nsa,nsat->nst", pi, self.P)
        reward = (pi * self.r).sum(-1)
        return torch.linalg.solve(torch.eye(self.r.shape[1]).to(pi) - self.gamma * transition, reward)

    def fixed_point(self, value: Callable[[Tensor], Tensor], iterations: int = 280) -> Tensor:
        """``q = r + gamma P value(q)`` of those values ``[N, S]``, from 0."""
        q = torch.zeros_like(self.r)
        for _ in range(iterations):
            q = self.backup(value(q))
        return q


@cache
def thousand() -> MDPs:
    made = [
        random_mdp(5, 4, 0.5 + 0.4 * (seed % 5) / 4, seed=seed, branching=(1, 2, 5)[seed % 3]) for seed in range(1_000)
    ]
    gamma = torch.tensor([mdp.gamma for mdp in made], dtype=torch.float64)
    return MDPs(torch.stack([mdp.P for mdp in made]), torch.stack([mdp.r for mdp in made]), gamma.view(-1, 1, 1))


@cache
def best_values() -> Tensor:
    """``V* [N, S]``."""
    return thousand().fixed_point(lambda q: q.amax(-1)).amax(-1)


def values(mdps: MDPs, regularizer: Regularizer, q: Tensor) -> Tensor:
    """``V^pi [2, N, S]`` of the regularized policy at ``q``, and of the greedy one."""
    greedy = torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q)
    return torch.stack([mdps.value_of(pi) for pi in (regularizer.policy(q), greedy)])


@pytest.mark.parametrize("name", KINDS)
def test_no_policy_of_1000_random_mdps_loses_more_than_its_share(name: str) -> None:
    make, k = KINDS[name]
    mdps = MDPs(*(part[: 100 if name == "tsallis-1.5" else 1_000] for part in thousand()))
    spread = float(mdps.r.max() - mdps.r.min())
    regularizer = make(guaranteed_temperature(0.2, reward_range=spread, cost_range=k))
    q = mdps.fixed_point(lambda q: regularizer(q).value)
    settled = (q - mdps.backup(regularizer(q).value)).abs().amax((1, 2)) < 1e-10
    assert settled.all() or (name == "boltzmann" and settled.double().mean() > 0.9)  # that one is no contraction
    lost = best_values()[: len(q)] - values(mdps, regularizer, q)
    share = lost[:, settled] * (1 - mdps.gamma.squeeze(-1))[settled] / spread
    assert (share > -1e-10).all() and (share <= 0.2).all()
    assert share[0].max() > 0.03  # nor is it negligible


def test_the_policies_are_those_of_the_oracle() -> None:
    q = thousand().fixed_point(lambda q: Entropy(0.5)(q).value)
    mdp = random_mdp(5, 4, 0.5 + 0.4 * 2 / 4, seed=7, branching=2)
    torch.testing.assert_close(Entropy(0.5).policy(q[7]), soft_value_iteration(mdp, 0.5).pi)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_in_any_unit_of_the_rewards_it_loses_the_same_and_a_fixed_one_does_not(scale: float) -> None:
    whole, worst = thousand(), {}
    mdps = MDPs(whole.P[:200], scale * whole.r[:200], whole.gamma[:200])
    spread = float(mdps.r.max() - mdps.r.min())
    for name, tau in {
        "1%": guaranteed_temperature(0.01, reward_range=spread, cost_range=math.log(4)),
        "fixed": 0.3,
    }.items():
        regularizer = Entropy(tau)
        q = mdps.fixed_point(lambda q, regularizer=regularizer: regularizer(q).value)
        lost = scale * best_values()[:200] - mdps.value_of(regularizer.policy(q))
        worst[name] = float((lost * (1 - mdps.gamma.squeeze(-1)) / spread).max())
    assert worst["1%"] == pytest.approx(0.00198, abs=2e-5)
    fixed = worst["fixed"]
    assert fixed > 0.5 if scale == 0.1 else 0.05 < fixed < 0.1 if scale == 1 else fixed < 0.0005


@pytest.mark.parametrize(("alpha", "clip_min"), [(0.5, -math.inf), (0.9, -0.3), (0.9, -1e-3)])
def test_a_munchausen_term_keeps_the_bound(alpha: float, clip_min: float) -> None:
    mdps, regularizer = MDPs(*(part[:200] for part in thousand())), Entropy(0.5)
    q = torch.zeros_like(mdps.r)
    for _ in range(600):
        value, tau_log_pi = regularizer.value_and_log_policy(q)
        q, last = mdps.backup(value) + munchausen_bonus(tau_log_pi, alpha, clip_min), q
    assert (q - last).abs().max() < 1e-9
    lost = (best_values()[:200] - values(mdps, regularizer, q)) * (1 - mdps.gamma.squeeze(-1))
    assert (lost > -1e-9).all() and (lost <= 0.5 * math.log(4)).all()


@pytest.mark.parametrize("name", ["entropy", "sparsemax", "uniform prior", "prior"])
def test_the_bound_is_met_to_half_a_percent(name: str) -> None:
    """State 0 chooses between 1, where all actions are equal without reward, and 2, which rewards one action only.

    It pays a little less than the range of the costs, and so the regularized agent goes to 1 for its freedom.
    """
    make, k = KINDS[name]
    regularizer, tau, gamma, pay = make(0.5), 0.5, 0.9998, 0.998 * 0.5 * k
    P, r = torch.zeros(1, 3, 4, 3, dtype=torch.float64), torch.zeros(1, 3, 4, dtype=torch.float64)
    P[0, 0, 1:, 1] = P[0, 1, :, 1] = P[0, 2, :, 2] = P[0, 0, 0, 2] = 1.0
    r[0, 2, 0], r[0, 2, 1:] = pay, -1e3 * tau
    mdps = MDPs(P, r, torch.full((1, 1, 1), gamma, dtype=torch.float64))
    least = float(regularizer(torch.zeros(4, dtype=torch.float64)).cost)
    most = least + tau * k
    q = mdps.backup(torch.tensor([[0.0, -least, pay - most]], dtype=torch.float64) / (1 - gamma))
    q = mdps.backup(regularizer(q).value)
    assert (q - mdps.backup(regularizer(q).value)).abs().max() < 1e-8
    lost = gamma * pay / (1 - gamma) - values(mdps, regularizer, q)[:, 0, 0]
    share = lost * (1 - gamma) / (tau * k)
    assert share.min() > 0.995 and share.max() <= 1.0


def test_the_temperature_of_a_share() -> None:
    """By hand: rewards in [-2, 3], three actions, 10% of 5 / (1 - gamma) to lose at ``tau ln 3 / (1 - gamma)``."""
    assert guaranteed_temperature(0.1, reward_range=5.0, cost_range=math.log(3)) == pytest.approx(
        0.4551196133, rel=1e-9
    )


@pytest.mark.parametrize(
    ("share", "reward_range", "cost_range", "sentence"),
    [
        (0.0, 1.0, 0.7, "share must be a finite number > 0"),
        (1.0, 1.0, 0.7, "share must be below 1, got 1.0"),
        (math.nan, 1.0, 0.7, "share must be a finite number > 0"),
        (0.1, 0.0, 0.7, "reward_range must be a finite number > 0"),
        (0.1, math.inf, 0.7, "reward_range must be a finite number > 0"),
        (0.1, 1.0, math.log(1), "cost_range must be a finite number > 0"),
    ],
)
def test_no_temperature_without_a_scale(share: float, reward_range: float, cost_range: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        guaranteed_temperature(share, reward_range=reward_range, cost_range=cost_range)


def test_a_learnt_coefficient_keeps_its_precision_in_a_bfloat16_loss() -> None:
    tau = DualCoefficient(0.3, target=-2.0, rises="below", name="tau")
    before = tau.log_value.detach().clone()
    assert tau.to(torch.bfloat16).log_value.dtype == torch.float32 and torch.equal(tau.log_value, before)
    assert tau.double().log_value.dtype == torch.float64
    assert isinstance(tau.log_value, torch.nn.Parameter) and tau.log_value.requires_grad


def test_a_followed_error_starts_between_its_bounds() -> None:
    with pytest.raises(ValueError, match="tau must start between its bounds 0.01 and 1, got 10.0"):
        BellmanErrorCoefficient(10.0, rate=0.1, high=1.0, name="tau")
