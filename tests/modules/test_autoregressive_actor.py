"""Bins whose dimensions depend on each other: whom a conditional sees, its limits, and its entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchrl_reg.modules import Multicategorical

NUM_BINS = [[3, 3, 3], [3, 4, 2]]
both = pytest.mark.parametrize("num_bins", NUM_BINS, ids=["equal", "ragged"])


@both
def test_conditionals_ignore_later_dimensions_and_see_earlier_ones(num_bins: list[int], make: Any, states: Any) -> None:
    dist = make("autoregressive", num_bins=num_bins).get_dist(states())
    for d in range(3):
        for e in range(3):
            index = torch.zeros(3, dtype=torch.int64)
            before = dist.conditionals(index).probs[d]
            index[e] = 1
            changed = not torch.allclose(before, dist.conditionals(index).probs[d], atol=1e-4)
            assert changed == (e < d)


@both
def test_logits_see_the_units_of_their_own_dimension_and_of_earlier_ones(
    num_bins: list[int], make: Any, states: Any
) -> None:
    actor, td, index = make("autoregressive", num_bins=num_bins), states(5), torch.ones(5, 3, dtype=torch.int64)
    before = actor.get_dist(td).conditionals(index).log_pi.detach().unbind(-2)
    for d in range(3):
        changed = make("autoregressive", num_bins=num_bins)
        with torch.no_grad():
            changed.features.bias[16 * d : 16 * (d + 1)] += 1.0
        after = changed.get_dist(td).conditionals(index).log_pi.unbind(-2)
        assert [not torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [e >= d for e in range(3)]


@both
def test_without_conditions_it_is_the_factorized_policy(
    num_bins: list[int], make: Any, states: Any, all_indices: Any
) -> None:
    actor = make("autoregressive", num_bins=num_bins, condition=False)
    td, index = states(5), all_indices(num_bins).unsqueeze(1)
    dist = actor.get_dist(td)
    hidden = actor.features(actor.network(td["observation"])).relu()
    logits = nn.functional.linear(hidden, actor.output.weight * actor.output_mask, actor.output.bias)
    factorized = Multicategorical(logits, bins=actor.bins())
    torch.testing.assert_close(dist.log_prob(index), factorized.log_prob(index), rtol=0, atol=0)
    assert torch.equal(dist.deterministic_sample, factorized.mode)
    torch.testing.assert_close(dist.entropy_estimate(), factorized.entropy(), rtol=0, atol=0)


def test_greedy_takes_the_likeliest_bin_of_each_conditional(make: Any, states: Any) -> None:
    dist = make("autoregressive").get_dist(states(20))
    index = dist.mode_index
    assert torch.equal(dist.conditionals(index).mode_index, index)


def test_the_torso_runs_once_per_action(make: Any, states: Any) -> None:
    calls: list[int] = []
    actor = make("autoregressive")
    actor.network.register_forward_hook(lambda *_: calls.append(1))
    actor(states(2))
    assert len(calls) == 1


def test_entropy_is_unbiased_in_value_and_gradient(make: Any, states: Any, all_indices: Any) -> None:
    actor = make("autoregressive").double()
    dist = actor.get_dist(states(1, dtype=torch.float64))
    log_pi = dist.log_prob(all_indices(NUM_BINS[1]).unsqueeze(1))
    exact = -(log_pi.exp() * log_pi).sum(0)
    torch.manual_seed(0)
    estimate = dist.entropy_estimate(20_000)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.02)
    for weight in (actor.previous.weight, actor.features.weight):
        wanted, got = (torch.autograd.grad(h.sum(), weight, retain_graph=True)[0] for h in (exact, estimate))
        assert (got - wanted).norm() < 0.05 * wanted.norm()


def test_logits_depend_on_the_action(make: Any, states: Any) -> None:
    with pytest.raises(NotImplementedError, match="depend on the action"):
        make("autoregressive").logits(states())
