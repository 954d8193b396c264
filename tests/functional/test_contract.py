"""Every function: gradcheck in float64, one compiled graph with the same results, half precision, and errors."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg import functional as F

ACTION = torch.tensor([2, 0, 1])
ENDED = torch.tensor([True, False, False])
TERMINATED = torch.eye(3, 4, dtype=torch.bool)
DONE = TERMINATED | TERMINATED.roll(1, -1)
FRACTIONS = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(3, 4)
TAU = torch.tensor(0.4, dtype=torch.float64)
SOFT = ("soft_value", "scaled_log_policy", "soft_value_and_log_policy", "soft_policy", "soft_gap")


def inputs(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def with_prior(name):
    function = getattr(F, name)
    return lambda q, prior, tau: function(q, tau, log_prior=prior)


# Name: (callable, differentiable inputs). tau is an input wherever it may be a tensor.
CASES = {
    **{name: (getattr(F, name), [*inputs((3, 4)), TAU]) for name in SOFT},
    **{f"{name} (prior)": (with_prior(name), [*inputs((3, 4), (4,)), TAU]) for name in SOFT[2:4]},
    "soft_value_and_policy": (F.soft_value_and_policy, [*inputs((3, 4)), TAU]),
    "munchausen_bonus": (lambda x, alpha: F.munchausen_bonus(x, alpha, -0.5), [-inputs((3,))[0].abs(), TAU]),
    "advantage_gap": (lambda q: F.advantage_gap(q, ACTION), inputs((3, 4))),
    "persistent_advantage_gap": (
        lambda q, next_q: F.persistent_advantage_gap(q, next_q, ACTION, ENDED),
        inputs((3, 4), (3, 4)),
    ),
    "action_gap": (F.action_gap, inputs((3, 4))),
    "quantile_huber_loss": (lambda z, y: F.quantile_huber_loss(z, FRACTIONS, y, 0.7), inputs((3, 4), (3, 5))),
    "policy_entropy": (F.policy_entropy, [inputs((3, 4))[0].softmax(-1)]),
    "path_consistency": (
        lambda *x: F.path_consistency(
            *x[:4], log_pi_reference=x[4], tau=x[5], lam=0.3, gamma=0.9, rollout=3, done=DONE, terminated=TERMINATED
        )[0],
        [*inputs(*[(3, 4)] * 5), TAU],
    ),
    "lambda_return": (
        lambda r, v, c: F.lambda_return(r, v, DONE[:, :, None], gamma=0.9, lmbda=0.7, action_cost=c),
        inputs(*[(3, 4, 1)] * 3),
    ),
    "q_lambda_return": (
        lambda r, v, c: F.q_lambda_return(r, v, c, DONE, gamma=0.9, lmbda=0.7),
        inputs(*[(3, 4)] * 3),
    ),
    "floored_log_prior": (lambda x: F.floored_log_prior(x, 0.01), inputs((3, 4))),
    "averaged_prior": (
        lambda prior, pi: F.averaged_prior(prior, pi, 0.3),
        [x.softmax(-1) for x in inputs((4,), (3, 2, 4))],
    ),
    "bellman_temperature": (
        lambda delta, scale: F.bellman_temperature(delta, scale, exponent=3.0, weights=ENDED),
        [*inputs((3,)), TAU],
    ),
    "soft_value_importance": (
        lambda q, log_p, tau: F.soft_value_importance(q, tau, log_p),
        [*inputs((3, 4), (3, 4)), TAU],
    ),
    "svgd_bandwidth": (F.svgd_bandwidth, inputs((3, 4, 2), (3, 5, 2))),
    "svgd_bandwidth (one kind)": (F.svgd_bandwidth, inputs((3, 4, 2))),
    "svgd_direction": (F.svgd_direction, [*inputs((3, 4, 2), (3, 4, 2), (3, 5, 2)), 1 + TAU * ACTION]),
    "e2w_exploration": (lambda n: F.e2w_exploration(n, 3, 0.2), [inputs((4,))[0].exp()]),
    "e2w_policy": (lambda q, tau: F.e2w_policy(q, 5 * torch.ones(3), tau, 0.2), [*inputs((3, 4)), TAU]),
    "categorical_projection": (
        lambda values, masses: F.categorical_projection(values, masses, torch.linspace(-4, 4, 9).to(values)),
        inputs((3, 4), (3, 4)),
    ),
    "kl_divergence": (F.kl_divergence, [x.log_softmax(-1) for x in inputs((3, 4), (4,))]),
}
#: These compute in the type of their data.
AS_GIVEN = ("path_consistency", "lambda_return", "q_lambda_return", "averaged_prior")


def test_every_public_function_is_covered():
    assert {name.split(" ")[0] for name in CASES} == set(F.__all__)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_without_a_change_of_the_inputs(name):
    function, tensors = CASES[name]
    leaves = [x.clone().requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(function, leaves)
    assert all(torch.equal(leaf, x) for leaf, x in zip(leaves, tensors, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_compiles_to_one_graph_without_recompiling(name):
    function, tensors = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    halved = [0.5 * x for x in tensors]  # the temperature too
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(*halved), function(*halved))


def test_float_temperature_compiles():
    torch.compiler.reset()
    function = F.soft_value_and_log_policy
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (q,) = inputs((3, 4))
    for tau in (0.03, 0.5, 0.0):
        torch.testing.assert_close(compiled(q, tau), function(q, tau))


@pytest.mark.parametrize("name", [name for name in CASES if name not in AS_GIVEN])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    function, tensors = CASES[name]
    halves = [x.to(dtype) if x.ndim else x.float() for x in tensors]
    torch.testing.assert_close(function(*halves), function(*[x.float() for x in halves]), rtol=0, atol=0)


Q, Z, FLAGS = torch.zeros(2, 3), torch.zeros(4, 8), torch.zeros(2, dtype=torch.bool)
REFUSED = [
    ("action_gap", (Q[:, :1],), "at least two actions"),
    ("advantage_gap", (Q, ACTION[:2, None]), r"action must have shape \(2,\)"),
    ("persistent_advantage_gap", (Q, Q, ACTION[:2], FLAGS[:, None]), "terminated must have the shape of action"),
    ("persistent_advantage_gap", (Q, Q[:1], ACTION[:2], FLAGS), "next_q that of q"),
    *(("munchausen_bonus", (Q, 0.9, clip_min), "clip_min must be <= 0 or None") for clip_min in (0.5, math.nan)),
    *(("quantile_huber_loss", (Z, Z, Z, kappa), "kappa must be >= 0") for kappa in (-1.0, math.nan)),
    ("quantile_huber_loss", (Z, Z[0], Z, 1.0), "fractions must have the shape of z"),
    ("quantile_huber_loss", (Z, Z, Z[:1], 1.0), "z_target must have the batch shape of z"),
    ("categorical_projection", (Z, Z[:2], Z[0]), "masses must have the shape of values"),
    ("categorical_projection", (Z, Z, Z[0, :1]), "support must be a grid"),
    *(("e2w_policy", (Q, FLAGS, 0.5, eps), "epsilon must be a finite number > 0, got") for eps in (0.0, -0.1)),
    *(("e2w_policy", (Q, FLAGS, 0.5, eps), "epsilon must be a finite number > 0") for eps in (math.inf, math.nan)),
    ("e2w_policy", (Q, torch.ones(4), 0.5, 0.1), r"visits must have shape \[2\] or \[2, 3\], got \[4\]"),
    ("soft_value_importance", (Q, -1.0, 0.0), "tau must be a finite temperature >= 0, got -1"),
    ("svgd_bandwidth", (Z[:1],), r"fixed must hold at least 2 particles .* got shape \(1, 8\)"),
    ("svgd_direction", (Z[:1], Z[:1], Z, TAU), r"fixed must hold at least 2 particles .* got shape \(1, 8\)"),
    ("svgd_direction", (Z, Z[:, :1], Z, TAU), r"score must have the shape of fixed \(4, 8\), got \(4, 1\)"),
    *(("bellman_temperature", (Q, c), f"scale must be a finite number > 0, got {c}") for c in (0.0, math.inf)),
    *((name, (Q, tau), "tau must be a finite temperature >= 0") for name in SOFT for tau in (-0.1, math.nan, math.inf)),
    *((name, (Q, TAU[None]), "tau must be a number or a 0-dimensional tensor") for name in SOFT),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), REFUSED)
def test_arguments_that_do_not_fit_are_one_sentence(name, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(F, name)(*arguments)
