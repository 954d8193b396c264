"""KL divergence to a prior: fixed, shared, or of the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
def test_bad_input(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
