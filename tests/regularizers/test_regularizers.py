"""Every regularizer: its policy is the best one, its value what that is worth, in any precision and with masks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_reg.regularizers import ActionPrior, Entropy, HardMax, PriorKL, Tsallis

TAU, RHO = 0.5, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


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


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return CASES[request.param]


def q_values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def test_the_value_is_what_the_policy_is_worth(case: Any) -> None:
    build, omega = case
    q = q_values(7, 5)
    out = build(TAU)(q)
    assert out.pi.shape == out.tau_log_pi.shape == out.action_cost.shape == (7, 5, 4)
    assert out.value.shape == out.cost.shape == (7, 5)
    torch.testing.assert_close(out.pi.sum(-1), torch.ones(7, 5, dtype=torch.float64))
    torch.testing.assert_close(out.cost, omega(out.pi), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.value, (out.pi * q).sum(-1) - out.cost, rtol=0, atol=1e-12)
    torch.testing.assert_close((out.pi * out.action_cost).sum(-1), out.cost, rtol=0, atol=1e-12)
    on_support = out.pi > 0
    same = (q - out.action_cost)[on_support] - out.value.unsqueeze(-1).expand_as(q)[on_support]
    assert same.abs().max() < 1e-12


def test_no_other_policy_does_better(case: Any) -> None:
    build, omega = case
    q = q_values(6)
    best = build(TAU)(q)
    generator = torch.Generator().manual_seed(0)
    for concentration in (0.1, 1.0, 10.0):
        other = torch._standard_gamma(torch.full((4000, 6, 4), concentration, dtype=torch.float64), generator=generator)
        other = other / other.sum(-1, keepdim=True)
        worth = (other * q).sum(-1) - omega(other)
        assert (worth <= best.value + 1e-12).all()
        near = 0.999 * best.pi + 0.001 * other
        assert ((near * q).sum(-1) - omega(near) <= best.value + 1e-12).all()


def test_the_short_forms_are_the_long_one(case: Any) -> None:
    regularizer = case[0](TAU)
    q = q_values(9)
    out = regularizer(q)
    value, tau_log_pi = regularizer.value_and_log_policy(q)
    torch.testing.assert_close((value, tau_log_pi), (out.value, out.tau_log_pi), rtol=0, atol=0)
    torch.testing.assert_close(regularizer.policy(q), out.pi, rtol=0, atol=1e-14)
    assert (q - out.value.unsqueeze(-1) <= out.tau_log_pi + 1e-12).all()
    mask = torch.rand(q.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    for allowed in (None, mask):
        out = regularizer(q, mask=allowed)
        value, pi = regularizer.value_and_policy(q, mask=allowed)
        assert torch.allclose(value, out.value, atol=1e-12) and torch.allclose(pi, out.pi, atol=1e-12)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_actions_are_out_at_any_scale(case: Any, mask_by: str, dtype: torch.dtype) -> None:
    for tau, scale in itertools.product((1e-30, 1e-3, 1.0, 1e3), (1.0, 1e6)):
        check_mask(case[0](tau), scale * q_values(8, dtype=dtype), mask_by)


def check_mask(regularizer: Any, q: Tensor, mask_by: str) -> None:
    dtype, allowed = q.dtype, torch.tensor([True, False, True, False]).expand(8, 4)
    if mask_by == "mask":
        out = regularizer(q, mask=allowed)
    else:
        out = regularizer(torch.where(allowed, q, -torch.inf if mask_by == "-inf" else torch.finfo(dtype).min))
    assert (out.pi[~allowed] == 0).all() and (out.action_cost[~allowed] == 0).all()
    for part in (out.pi, out.cost, out.value, out.action_cost, out.tau_log_pi[allowed]):
        assert part.isfinite().all() and part.dtype == dtype
    torch.testing.assert_close(out.pi.sum(-1), torch.ones(8, dtype=dtype))
    one = regularizer(q, mask=torch.tensor([False, True, False, False]).expand(8, 4))
    torch.testing.assert_close(one.pi[:, 1], torch.ones(8, dtype=dtype))


def test_half_precision_is_computed_in_float32(case: Any) -> None:
    out = case[0](TAU)(q_values(3, dtype=torch.bfloat16))
    assert {part.dtype for part in out} == {torch.float32}


def test_one_object_and_its_owners(case: Any) -> None:
    regularizer = case[0](TAU)
    if not regularizer.coefficient_names:
        assert not regularizer.scalars()
        return
    owners = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    for owner in owners:
        owner.regularizer = regularizer
    q = q_values(3)
    owners.float()
    owners[0].regularizer.tau = 0.1
    torch.testing.assert_close(owners[1].regularizer(q).value, case[0](0.1)(q).value, rtol=0, atol=0)
    twin = copy.deepcopy(owners)
    twin[0].regularizer.tau = 2.0
    assert twin[1].regularizer.tau == 2.0 and abs(float(regularizer.tau) - 0.1) < 1e-15
    other = case[0](0.7)
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
    torch.testing.assert_close(rows["action_gap"], best[:, 0] - best[:, 1])
    if "soft_gap" in rows:
        torch.testing.assert_close(rows["soft_gap"], out.value - q.amax(-1), rtol=0, atol=1e-12)
    if "entropy" in rows:
        torch.testing.assert_close(rows["entropy"], -shannon(out.pi), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=[] if n in ("entropy", "tsallis_1.5") else [pytest.mark.slow]) for n in CASES],
    indirect=True,
)
def test_compiles_whole_and_follows_assignments(case: Any) -> None:
    torch._dynamo.reset()
    regularizer = case[0](TAU)
    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tau in (0.5, 0.3, 0.1):
            if regularizer.coefficient_names:
                regularizer.tau = tau
            for ours, theirs in zip(compiled(q_values(5)), regularizer(q_values(5)), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_priors() -> None:
    q = q_values(20)
    kl = PriorKL(TAU, prior=RHO)
    torch.testing.assert_close(kl.greedy(q), kl(q).pi.argmax(-1))
    assert (kl.greedy(q) != q.argmax(-1)).any()
    state = torch.log_softmax(q_values(20).flip(-1), -1)
    out = PriorKL(TAU)(q, log_prior=state)
    expected = (state + q / TAU).softmax(-1)
    torch.testing.assert_close(out.pi, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.cost, TAU * shannon(expected, state.exp()), rtol=0, atol=1e-12)
    prior = ActionPrior(4, probabilities=RHO, beta=2.0)
    shared = PriorKL(prior=prior)
    prior.assign(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    shared.tau = 0.25
    assert float(prior.beta) == 4.0
    torch.testing.assert_close(shared.policy(q), prior.policy(q), rtol=0, atol=1e-12)


def quadratic_program(z: Tensor) -> Tensor:
    """The point of the simplex nearest to ``z``, by trying every support: exact."""
    best, nearest = None, torch.inf
    for size in range(1, len(z) + 1):
        for support in itertools.combinations(range(len(z)), size):
            point = torch.zeros_like(z)
            chosen = z[list(support)]
            point[list(support)] = chosen - (chosen.sum() - 1) / size
            distance = (point - z).square().sum()
            if (point >= 0).all() and distance < nearest:
                best, nearest = point, distance
    assert best is not None
    return best


def test_sparsemax_is_the_projection_on_the_simplex() -> None:
    sizes = set()
    for row in 2 * q_values(200):
        exact = quadratic_program(row / TAU)
        out = Tsallis(TAU)(row)
        torch.testing.assert_close(out.pi, exact, rtol=0, atol=1e-12)
        assert ((out.pi > 0) == (exact > 1e-13)).all()
        value = (exact * row).sum() + TAU / 2 * (1 - exact.square().sum())
        torch.testing.assert_close(out.value, value, rtol=0, atol=1e-12)
        assert row.max() <= out.value <= row.max() + TAU * 3 / 8 + 1e-12
        sizes.add(int((exact > 1e-13).sum()))
    assert {1, 2, 3} <= sizes
    near_two = Tsallis(TAU, q=2 + 1e-9)(q_values(50))
    torch.testing.assert_close(near_two.pi, Tsallis(TAU)(q_values(50)).pi, rtol=0, atol=1e-7)


def test_tsallis_tends_to_the_entropy_and_its_logarithm_is_the_bregman_form() -> None:
    q = q_values(30)
    torch.testing.assert_close(Tsallis(TAU, q=1 + 1e-6)(q).pi, Entropy(TAU)(q).pi, rtol=0, atol=1e-5)
    out = Tsallis(TAU)(q)
    bregman = TAU * (out.pi - 0.5 - out.pi.square().sum(-1, keepdim=True) / 2)
    torch.testing.assert_close(out.tau_log_pi, bregman, rtol=0, atol=1e-13)
    assert (out.tau_log_pi >= -TAU).all() and (q - out.value.unsqueeze(-1) <= out.tau_log_pi + 1e-12).all()
    for bad in (1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="q must be"):
            Tsallis(0.5, q=bad)


def test_bad_input() -> None:
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        for build in (Entropy, PriorKL):
            with pytest.raises(ValueError, match="tau must be a finite number > 0"):
                build(bad)
    with pytest.raises(ValueError, match="tau must be given, or an ActionPrior"):
        PriorKL()
    with pytest.raises(ValueError, match="tau must be given, or an ActionPrior"):
        PriorKL(0.5, prior=ActionPrior(3))
    with pytest.raises(ValueError, match="sum to one"):
        PriorKL(0.5, prior=[0.5, 0.4])
    with pytest.raises(ValueError, match="over the network's 4 actions, got 3"):
        PriorKL(0.5, prior=[0.5, 0.25, 0.25])(q_values(2))


def test_the_entropy_of_a_prior_that_rules_an_action_out() -> None:
    kl, q = PriorKL(0.5, prior=[0.5, 0.5, 0.0]), torch.randn(4, 3)
    rows = kl.diagnostics(q, kl(q).tau_log_pi)
    torch.testing.assert_close(rows["prior_entropy"], torch.full((4,), 2.0).log())


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_the_gradient_of_a_sparse_value_is_its_policy(q: float) -> None:
    x = torch.tensor([1.0, 1.02, 3.0], dtype=torch.float64, requires_grad=True)
    out = Tsallis(0.1, q=q)(x)
    out.value.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_nan_stays_in_its_row_of_a_sparse_policy(q: float) -> None:
    x = q_values(4)
    expected = Tsallis(TAU, q=q)(x)
    x[1, 2] = torch.nan
    x[2] = torch.nan
    out = Tsallis(TAU, q=q)(x)
    for part, whole in zip(out, expected, strict=True):
        torch.testing.assert_close(part[[0, 3]], whole[[0, 3]], rtol=0, atol=0)
    assert out.value[1:3].isnan().all() and out.pi[1:3].isnan().any(-1).all()
