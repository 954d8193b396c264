"""KL divergence to a prior, fixed, shared or of the state; the action prior, floored, exact, assigned in place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_reg.regularizers import ActionPrior, Entropy, PriorKL

TAU, RHO = 0.5, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.randn(20, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_a_prior_of_the_state_and_one_that_is_shared() -> None:
    kl = PriorKL(TAU, prior=RHO)
    torch.testing.assert_close(kl.greedy(Q), kl(Q).pi.argmax(-1))
    assert (kl.greedy(Q) != Q.argmax(-1)).any()
    state = torch.log_softmax(Q.flip(-1), -1)
    out = PriorKL(TAU)(Q, log_prior=state)
    expected = (state + Q / TAU).softmax(-1)
    torch.testing.assert_close(out.pi, expected, rtol=0, atol=1e-12)
    cost = TAU * (expected * (expected.log() - state)).sum(-1)
    torch.testing.assert_close(out.cost, cost, rtol=0, atol=1e-12)
    prior = ActionPrior(4, probabilities=RHO, beta=2.0)
    shared = PriorKL(prior=prior)
    prior.assign(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    shared.tau = 0.25
    assert float(prior.beta) == 4.0
    torch.testing.assert_close(shared.policy(Q), prior.policy(Q), rtol=0, atol=1e-12)


def test_the_entropy_of_a_prior_that_rules_an_action_out() -> None:
    kl, q = PriorKL(0.5, prior=[0.5, 0.5, 0.0]), torch.randn(4, 3)
    rows = kl.diagnostics(q, kl(q).tau_log_pi)
    torch.testing.assert_close(rows["prior_entropy"], torch.full((4,), 2.0).log())


BAD: list[tuple[Any, str]] = [
    *((lambda tau=tau: PriorKL(tau), "tau must be a finite number > 0") for tau in (0.0, -1.0, float("inf"))),
    (lambda: Entropy(float("nan")), "tau must be a finite number > 0"),
    (PriorKL, "tau must be given, or an ActionPrior"),
    (lambda: PriorKL(0.5, prior=ActionPrior(3)), "tau must be given, or an ActionPrior"),
    (lambda: PriorKL(0.5, prior=[0.5, 0.4]), "sum to one"),
    (lambda: PriorKL(0.5, prior=[0.5, 0.25, 0.25])(Q), "over the network's 4 actions, got 3"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD)
def test_bad_divergences(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# -- the action prior -----------------------------------------------------------------------------------------------


def test_a_zero_is_floored_and_the_rest_normalized() -> None:
    prior = ActionPrior(3, probabilities=[0.5, 0.5, 0.0], floor=1e-3)
    rho = prior.log_prior.exp()
    torch.testing.assert_close(rho, torch.tensor([0.5, 0.5, 1e-3], dtype=torch.float64) / 1.001)
    prior.assign(torch.tensor([1.0, 0.0, 0.0]))
    assert prior.log_prior.isfinite().all() and math.isclose(float(prior.log_prior.exp().sum()), 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_prior_keeps_its_precision(dtype: torch.dtype) -> None:
    rho = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    holder = nn.ModuleList([nn.Linear(2, 2), ActionPrior(3, probabilities=rho.tolist(), beta=0.1)]).to(dtype)
    assert holder[0].weight.dtype == dtype
    torch.testing.assert_close(holder[1].log_prior.exp(), rho, rtol=0, atol=1e-15)
    assert float(holder[1].beta) == 0.1


def test_the_greedy_action_of_a_uniform_prior_is_that_of_q() -> None:
    q = 1e-3 * torch.randn(2_000, 6)
    for beta in (1e-3, 1.0, 1e3):
        assert torch.equal(ActionPrior(6, beta=beta).greedy(q), q.argmax(-1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_actions": 0}, "num_actions must be an integer >= 1, got 0"),
        ({"probabilities": [0.5, 0.5]}, "a probability for each of 3 actions"),
        ({"probabilities": [[0.5, 0.5, 0.0]]}, "a probability for each of 3 actions"),
        ({"probabilities": [1.2, -0.1, -0.1]}, "must not have negative probabilities"),
        ({"probabilities": [0.5, 0.4, 0.2]}, "must sum to one"),
        ({"beta": 0}, "beta must be a finite number > 0"),
        ({"beta": float("nan")}, "beta must be a finite number > 0"),
        ({"floor": 0.0}, r"floor must be in \(0, 1 / 3\), got 0.0"),
        ({"floor": 0.4}, "floor must be in"),
    ],
)
def test_bad_action_priors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionPrior(**{"num_actions": 3} | kwargs)


def test_a_bad_beta_is_refused() -> None:
    prior = ActionPrior(3)
    with pytest.raises(ValueError, match="beta must be"):
        prior.beta = -1.0


def test_a_network_needs_an_action_prior() -> None:
    network = TensorDictModule(torch.nn.Linear(4, 3), ["observation"], ["logits"])
    for prior in (None, [0.5, 0.25, 0.25]):
        with pytest.raises(ValueError, match="prior must be an ActionPrior where network is given"):
            PriorKL(0.1, prior=prior, network=network)
