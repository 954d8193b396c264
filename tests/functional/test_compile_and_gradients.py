"""Every function: gradcheck in float64, one compiled graph that gives the same, no surprises."""

from __future__ import annotations

import inspect

import pytest
import torch

from torchrl_reg import functional

ACTION = torch.tensor([2, 0, 1])
ENDED = torch.tensor([True, False, False])
TERMINATED = torch.eye(3, 4, dtype=torch.bool)
DONE = TERMINATED | TERMINATED.roll(1, -1)


def inputs(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def with_prior(name):
    function = getattr(functional, name)
    return lambda q, prior, tau: function(q, tau, log_prior=prior.log_softmax(-1))


# Name: (callable, differentiable inputs). tau is an input wherever it may be a tensor.
TAU = torch.tensor(0.4, dtype=torch.float64)
SOFT = ("soft_value", "scaled_log_policy", "soft_value_and_log_policy", "soft_policy", "soft_gap")
CASES = {
    **{name: (getattr(functional, name), [*inputs((3, 4)), TAU]) for name in SOFT},
    **{f"{name} (prior)": (with_prior(name), [*inputs((3, 4), (4,)), TAU]) for name in SOFT},
    "soft_value_and_policy": (functional.soft_value_and_policy, [*inputs((3, 4)), TAU]),
    "munchausen_bonus": (
        lambda x, alpha: functional.munchausen_bonus(x, alpha, -0.5),
        [-torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64), TAU],
    ),
    "advantage_gap": (lambda q: functional.advantage_gap(q, ACTION), inputs((3, 4))),
    "persistent_advantage_gap": (
        lambda q, next_q: functional.persistent_advantage_gap(q, next_q, ACTION, ENDED),
        inputs((3, 4), (3, 4)),
    ),
    "action_gap": (functional.action_gap, inputs((3, 4))),
    "quantile_huber_loss": (
        lambda z, z_target: functional.quantile_huber_loss(z, FRACTIONS, z_target, 0.7),
        inputs((3, 4), (3, 5)),
    ),
    "quantile_huber_loss (kappa 0)": (
        lambda z, z_target: functional.quantile_huber_loss(z, FRACTIONS, z_target, 0.0),
        inputs((3, 4), (3, 5)),
    ),
    "policy_entropy": (functional.policy_entropy, [inputs((3, 4))[0].softmax(-1)]),
    "path_consistency": (
        lambda *x: functional.path_consistency(
            *x[:4], log_pi_reference=x[4], tau=x[5], lam=0.3, gamma=0.9, rollout=3, done=DONE, terminated=TERMINATED
        )[0],
        [*inputs(*[(3, 4)] * 5), TAU],
    ),
    "lambda_return": (
        lambda r, v, c: functional.lambda_return(r, v, DONE[:, :, None], gamma=0.9, lmbda=0.7, action_cost=c),
        inputs((3, 4, 1), (3, 4, 1), (3, 4, 1)),
    ),
    "q_lambda_return": (
        lambda r, v, c: functional.q_lambda_return(r, v, c, DONE, gamma=0.9, lmbda=0.7),
        inputs((3, 4), (3, 4), (3, 4)),
    ),
    "floored_log_prior": (lambda x: functional.floored_log_prior(x, 0.01), inputs((3, 4))),
    "averaged_prior": (
        lambda prior, pi: functional.averaged_prior(prior, pi, 0.3),
        [x.softmax(-1) for x in inputs((4,), (3, 2, 4))],
    ),
    "bellman_temperature": (
        lambda delta, scale: functional.bellman_temperature(delta, scale, exponent=3.0, weights=ENDED),
        [inputs((3,))[0], TAU],
    ),
    "soft_value_importance": (
        lambda q, log_p, tau: functional.soft_value_importance(q, tau, log_p),
        [*inputs((3, 4), (3, 4)), TAU],
    ),
    "svgd_bandwidth": (functional.svgd_bandwidth, inputs((3, 4, 2), (3, 5, 2))),
    "svgd_bandwidth (one kind)": (functional.svgd_bandwidth, inputs((3, 4, 2))),
    "svgd_direction": (functional.svgd_direction, [*inputs((3, 4, 2), (3, 4, 2), (3, 5, 2)), 1 + TAU * ACTION]),
    "e2w_exploration": (lambda n: functional.e2w_exploration(n.exp(), 3, 0.2), inputs((4,))),
    "e2w_policy": (lambda q, tau: functional.e2w_policy(q, 5 * torch.ones(3), tau, 0.2), [*inputs((3, 4)), TAU]),
    "categorical_projection": (
        lambda values, masses: functional.categorical_projection(
            values, masses, torch.linspace(-4.0, 4.0, 9, dtype=values.dtype)
        ),
        list(inputs((3, 4), (3, 4))),
    ),
    "kl_divergence": (functional.kl_divergence, [x.log_softmax(-1) for x in inputs((3, 4), (4,))]),
}
FRACTIONS = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(3, 4)


def test_every_public_function_is_covered():
    assert {name.split(" ")[0] for name in CASES} == set(functional.__all__)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    function, tensors = CASES[name]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in tensors])


@pytest.mark.parametrize("name", CASES)
def test_compiles_to_one_graph_without_recompiling(name):
    function, tensors = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    halved = [0.5 * x for x in tensors]  # the temperature too
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(*halved), function(*halved))


@pytest.mark.parametrize("name", SOFT)
def test_float_temperature_compiles(name):
    torch.compiler.reset()
    function = getattr(functional, name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (q,) = inputs((3, 4))
    for tau in (0.03, 0.5, 0.0):
        torch.testing.assert_close(compiled(q, tau), function(q, tau))


def test_inputs_are_not_changed():
    for function, tensors in CASES.values():
        before = [x.clone() for x in tensors]
        function(*tensors)
        for x, copy in zip(tensors, before, strict=True):
            assert torch.equal(x, copy)


def test_every_public_function_is_documented():
    for name in functional.__all__:
        doc = inspect.getdoc(getattr(functional, name))
        assert doc and "Source:" in doc and "Args:" in doc and "Returns:" in doc, name
