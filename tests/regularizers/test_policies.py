"""Every regularizer, and a user's: its policy maximizes, and its value is the maximum."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg import load_policy
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.agents import save_policy
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import QLearningLoss
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
    as_coefficient,
    check_regularizer,
)

TAU, RHO = 0.5, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


class Plain(Regularizer):
    """``Omega(pi) = -tau H(pi)``, as a user writes it: with a forward pass and nothing else."""

    coefficient_names = ("tau",)

    def __init__(self, tau: Any) -> None:
        super().__init__()
        self.tau_coefficient = as_coefficient(tau, name="tau")

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = q if mask is None else q.masked_fill(~mask, -torch.inf)
        value = self.tau * (q / self.tau).logsumexp(-1)
        tau_log_pi = q - value.unsqueeze(-1)
        pi = (tau_log_pi / self.tau).exp()
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        return Regularized(pi, (pi * action_cost).sum(-1), value, tau_log_pi, action_cost)


def shannon(pi: Tensor, reference: Any = 1.0) -> Tensor:
    return torch.xlogy(pi, pi / reference).sum(-1)


#: How to build it at temperature x, and its Omega at TAU.
CASES: dict[str, tuple[Any, Any]] = {
    "hard_max": (lambda tau: HardMax(), lambda pi: torch.zeros(pi.shape[:-1], dtype=pi.dtype)),
    "entropy": (Entropy, lambda pi: TAU * shannon(pi)),
    "prior_kl": (lambda tau: PriorKL(tau, prior=RHO), lambda pi: TAU * shannon(pi, RHO)),
    "uniform_kl": (PriorKL, lambda pi: TAU * shannon(pi, 0.25)),
    "tsallis": (Tsallis, lambda pi: TAU / 2 * (pi.square().sum(-1) - 1)),
    "tsallis_1.5": (lambda tau: Tsallis(tau, q=1.5), lambda pi: TAU / 0.75 * (pi.pow(1.5).sum(-1) - 1)),
    "action_prior": (
        lambda tau: PriorKL(prior=ActionPrior(4, probabilities=RHO, beta=1 / tau)),
        lambda pi: TAU * shannon(pi, RHO),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return CASES[request.param]


def q_values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def test_it_keeps_the_definition(case: Any) -> None:
    build, omega = case
    check_regularizer(build(TAU), num_actions=4)
    out = build(TAU)(q_values(7, 5))
    torch.testing.assert_close(out.cost, omega(out.pi), rtol=0, atol=1e-12)
    assert out.value.shape == (7, 5) and out.tau_log_pi.shape == (7, 5, 4)


def test_policy_and_costs_have_their_gradients(case: Any) -> None:
    """Against differences; at values where the support of a sparse policy does not change."""
    regularizer = case[0](TAU)
    q = torch.tensor([[1.0, 0.9, -0.3, -3.0]], dtype=torch.float64, requires_grad=True)
    for part in ("pi", "cost", "value", "tau_log_pi"):
        assert torch.autograd.gradcheck(lambda x, name=part: getattr(regularizer(x), name).sin(), q), part


@pytest.mark.parametrize("index", [1.5, 2.5, 3.0])
def test_the_gradient_of_a_deformed_policy_is_that_of_differences(index: float) -> None:
    q = torch.tensor([[1.0, 0.9, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Tsallis(TAU, q=index)(x).pi, q)


@pytest.mark.parametrize("tau", [1e2, 1e4, 1e8])
def test_a_hot_value_under_a_prior_is_its_mean(tau: float) -> None:
    """In float32: ``tau ln sum rho exp(q / tau)`` loses all digits where the sum is formed and near 1."""
    q, rho = torch.tensor([[1.0, 2.0, -3.0, 0.5]]), [0.2, 0.3, 0.4, 0.1]
    exact = PriorKL(tau, prior=rho)(q.double())
    out = PriorKL(tau, prior=rho)(q)
    mean = (torch.tensor(rho) * q).sum(-1)
    torch.testing.assert_close(exact.value.float(), mean, rtol=0, atol=4 / tau + 3e-7)
    torch.testing.assert_close(out.value, exact.value.float(), rtol=0, atol=5e-7)
    torch.testing.assert_close(out.tau_log_pi, exact.tau_log_pi.float(), rtol=0, atol=5e-7)
    torch.testing.assert_close((out.pi * q).sum(-1) - out.cost, out.value, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_diagnostics_under_a_prior_are_not_rounded(dtype: torch.dtype) -> None:
    regularizer, q = PriorKL(TAU, prior=RHO), torch.tensor([[1.0, 0.5, -2.0, 0.25]])
    found, exact = (regularizer.diagnostics(x, regularizer.value_and_log_policy(x)[1]) for x in (q.to(dtype), q))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    given = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log().to(dtype)  # of a state, by a network
    half, full = (regularizer(q, log_prior=each) for each in (given, given.float()))
    torch.testing.assert_close(half.value, full.value, rtol=0, atol=1e-6)


def test_the_hard_maximum_takes_the_first_of_the_best() -> None:
    assert HardMax()(torch.tensor([1.0, 3.0, 3.0])).pi.tolist() == [0.0, 1.0, 0.0]


def test_no_other_policy_does_better(case: Any) -> None:
    build, omega = case
    q = q_values(6)
    best = build(TAU)(q)
    generator = torch.Generator().manual_seed(0)
    for concentration in (0.1, 1.0, 10.0):
        other = torch._standard_gamma(torch.full((4000, 6, 4), concentration, dtype=torch.float64), generator=generator)
        other = other / other.sum(-1, keepdim=True)
        for rival in (other, 0.999 * best.pi + 0.001 * other):
            assert ((rival * q).sum(-1) - omega(rival) <= best.value + 1e-12).all()


def test_cold_is_the_hard_maximum(case: Any) -> None:
    q, hard = q_values(9), HardMax()(q_values(9))
    for tau, atol in ((1e-3, 1e-2), (1e-6, 1e-5), (1e-300, 1e-12)):
        out = case[0](tau)(q)
        torch.testing.assert_close(out.value, hard.value, rtol=0, atol=atol)
        if isinstance(case[0](tau), Tsallis):  # a deformed logarithm is bounded by tau, off the support too
            assert (out.tau_log_pi >= -2 * tau).all()
        else:
            torch.testing.assert_close(out.tau_log_pi, hard.tau_log_pi, rtol=0, atol=atol)
    torch.testing.assert_close(out.pi, hard.pi, rtol=0, atol=0)
    assert (out.cost.abs() < 1e-12).all()


@pytest.mark.parametrize("mask_by", ["mask", "-inf", "smallest"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_masked_actions_are_out_at_any_scale(case: Any, mask_by: str, dtype: torch.dtype) -> None:
    """In half precision computed in float32."""
    allowed, single = torch.tensor([[True, False, True, False], [False, True, False, False]])
    mask = torch.cat((allowed.expand(7, 4), single.expand(1, 4)))
    computed = torch.promote_types(dtype, torch.float32)
    for tau, scale in itertools.product((1e-30, 1e-3, 1.0, 1e3), (1.0, 1e6)):
        regularizer, q = case[0](tau), scale * q_values(8, dtype=dtype)
        masked = torch.where(mask, q, -torch.inf if mask_by == "-inf" else torch.finfo(dtype).min)
        out = regularizer(q, mask=mask) if mask_by == "mask" else regularizer(masked)
        assert (out.pi[~mask] == 0).all() and (out.action_cost[~mask] == 0).all()
        for part in (out.pi, out.cost, out.value, out.action_cost, out.tau_log_pi[mask]):
            assert part.isfinite().all() and part.dtype == computed
        torch.testing.assert_close(out.pi.sum(-1), torch.ones(8, dtype=computed))
        if mask_by == "mask":
            short = regularizer.value_and_policy(q, mask=mask)
            torch.testing.assert_close(short, (out.value, out.pi), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name != "hard_max"])
def test_a_temperature_is_assigned_saved_and_not_shared_with_a_copy(name: str) -> None:
    build = CASES[name][0]
    regularizer, q = nn.ModuleList([build(TAU)]).float()[0], q_values(3)
    regularizer.tau = 0.1
    torch.testing.assert_close(regularizer(q).value, build(0.1)(q).value, rtol=0, atol=0)
    copy.deepcopy(regularizer).tau = 2.0
    assert abs(float(regularizer.tau) - 0.1) < 1e-15
    other = build(0.7)
    other.load_state_dict(regularizer.state_dict())
    assert other.tau == regularizer.tau
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau must be a finite number > 0"):
            regularizer.tau = bad


def test_diagnostics_say_what_the_policy_is(case: Any) -> None:
    q = q_values(11)
    regularizer = case[0](TAU)
    out = regularizer(q)
    rows = regularizer.diagnostics(q, out.tau_log_pi, reference=out.tau_log_pi)
    best = q.topk(2).values
    expected = {"action_gap": best[:, 0] - best[:, 1], "soft_gap": out.value - best[:, 0], "entropy": -shannon(out.pi)}
    assert set(expected) <= set(rows) or isinstance(regularizer, HardMax)
    for name in set(expected) & set(rows):
        torch.testing.assert_close(rows[name], expected[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("entropy", "tsallis") else [pytest.mark.slow]) for n in CASES]
)
def test_compiles_whole_and_follows_assignments(name: str) -> None:
    torch._dynamo.reset()
    regularizer = CASES[name][0](TAU)
    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tau in (0.5, 0.3, 0.1):
            if regularizer.coefficient_names:
                regularizer.tau = tau
            torch.testing.assert_close(tuple(compiled(q_values(5))), tuple(regularizer(q_values(5))))


# -- check_regularizer on a user's regularizer -------------------------------------------------------------


def test_one_of_a_users_own_keeps_the_definition() -> None:
    check_regularizer(Plain(0.5), num_actions=4)
    with pytest.raises(ValueError, match=r"Boltzmann must have <pi, tau_log_pi> as its cost, got a difference of"):
        check_regularizer(Boltzmann(0.5))


@pytest.mark.parametrize(
    ("field", "spoil", "message"),
    [
        ("pi", lambda out: 1.1 * out.pi, "a pi that sums to one"),
        ("value", lambda out: out.value + 0.1, "<pi, q> - cost as its value"),
        ("pi", lambda out: out.pi.flip(-1), "<pi, q> - cost as its value"),
        ("tau_log_pi", lambda out: TAU * (1 + out.pi.log()), "<pi, tau_log_pi> as its cost"),  # the raw gradient
        ("action_cost", lambda out: 2 * out.action_cost, "action_cost = tau_log_pi"),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, spoil: Any, message: str) -> None:
    class Spoilt(Plain):
        def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
            out = super().forward(q, mask=mask)
            return out._replace(**{field: spoil(out)})

    with pytest.raises(ValueError, match=f"Spoilt must have {message}"):
        check_regularizer(Spoilt(TAU))


def test_a_declared_coefficient_is_an_attribute() -> None:
    regularizer = Plain(0.5)
    assert list(regularizer.coefficients()) == ["tau"]
    regularizer.tau = 0.25
    assert regularizer.scalars() == {"tau": 0.25}
    learnt = DualCoefficient(0.5, target=0.7, rises="below", name="tau")
    assert Plain(learnt).coefficients()["tau"] is learnt

    class Forgetful(Plain):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    with pytest.raises(AttributeError, match=r"Forgetful must set self.tau \(a number\) or self.tau_coeff"):
        Forgetful().coefficients()


class Bonus(Shaping):
    """A user's shaping."""

    coefficient_names = ("weight",)

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, q: Tensor, tau_log_pi: Tensor, action: Tensor, **_: Any) -> Tensor:
        return self.weight * tau_log_pi.mean(-1)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_loss_takes_it_with_all_it_reports(learnt: bool) -> None:
    tau = DualCoefficient(0.5, target=0.7, rises="below", name="tau") if learnt else 0.5
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    step = {"observation": torch.randn(6, 4), "reward": torch.ones(6, 1), "done": torch.zeros(6, 1, dtype=torch.bool)}
    step["terminated"] = step["done"]
    data = TensorDict({"observation": torch.randn(6, 4), "action": torch.arange(6) % 3, "next": step}, [6])
    loss = QLearningLoss(actor, regularizer=Plain(tau), shaping=Bonus(0.3), delay_value=False)
    out = loss(data.clone())
    with torch.no_grad():
        policy = loss.regularizer(actor(data)["action_value"])
    torch.testing.assert_close(out["entropy"], torch.special.entr(policy.pi).sum(-1).mean())
    torch.testing.assert_close(out["bonus"], 0.3 * policy.tau_log_pi.mean())
    assert {"tau", "soft_gap", "action_gap"} <= set(out.keys()) and ("loss_tau" in set(out.keys())) == learnt


@pytest.mark.parametrize(
    "regularizer",
    [Plain(0.5), Boltzmann(Coefficient(0.4, name="tau")), PriorKL(0.5, prior=[0.7, 0.3]), Tsallis(0.3, q=1.5)],
)
def test_its_policy_is_saved_and_read(tmp_path: Path, regularizer: Regularizer) -> None:
    env, q = make_env(EnvSettings("cartpole"), num_envs=1), torch.randn(5, 2)
    actor = QValueActor(q_network(NetSettings(), env), spec=env.full_action_spec_unbatched["action"])
    regularizer.tau = 0.2
    save_policy(tmp_path / "p", BoltzmannQActor(actor, regularizer=regularizer))
    read = load_policy(tmp_path / "p").regularizer
    assert type(read) is type(regularizer) and float(read.tau) == 0.2
    torch.testing.assert_close(read.policy(q), regularizer.policy(q), rtol=0, atol=0)


# -- sparse policies; the projection itself: tests/tabular ----------------------------------------------------------


@pytest.mark.parametrize("q", [1.0, 0.5, float("nan")])
def test_bad_indices_of_tsallis_entropies(q: float) -> None:
    with pytest.raises(ValueError, match="q must be"):
        Tsallis(0.5, q=q)


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_the_gradient_of_a_sparse_value_is_its_policy(q: float) -> None:
    x = torch.tensor([1.0, 1.02, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Tsallis(0.1, q=q)(x).value, x)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_nan_stays_in_its_row_of_a_sparse_policy(q: float) -> None:
    x = q_values(4)
    expected = Tsallis(TAU, q=q)(x)
    x[1, 2] = x[2] = torch.nan
    out = Tsallis(TAU, q=q)(x)
    for part, whole in zip(out, expected, strict=True):
        torch.testing.assert_close(part[[0, 3]], whole[[0, 3]], rtol=0, atol=0)
    assert out.value[1:3].isnan().all() and out.pi[1:3].isnan().any(-1).all()


def test_all_forms_of_a_boltzmann_policy_have_one_value() -> None:
    q = torch.tensor([[0.0, 1.0, -2.0]])
    boltzmann, mask = Boltzmann(0.5), torch.tensor([[True, True, False]])
    for given in (None, mask):
        out, found = boltzmann(q, mask=given), boltzmann.value_and_policy(q, mask=given)
        torch.testing.assert_close(found, (out.value, out.pi))
        torch.testing.assert_close(out.value, (out.pi * q).sum(-1))
    value, tau_log_pi = boltzmann.value_and_log_policy(q)
    rows = boltzmann.diagnostics(q, tau_log_pi, reference=tau_log_pi)
    torch.testing.assert_close(rows["soft_gap"], value - 1.0)
    assert (rows["soft_gap"] < 0).all() and (rows["kl"] == 0).all()
