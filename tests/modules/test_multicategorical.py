"""The distribution over bins of a box."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from torchrl_reg.modules import ActionBins, Multicategorical

LOW, HIGH = torch.tensor([-2.3, -1.0, 0.0]), torch.tensor([0.7, 1.0, 1e-3])
BINS = {"equal": [4, 4, 4], "ragged": [3, 5, 2]}
both = pytest.mark.parametrize("kind", BINS)


def make(kind: str, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Multicategorical:
    logits = 2 * torch.randn(*batch, sum(BINS[kind]), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Multicategorical(logits.requires_grad_(), LOW.to(dtype), HIGH.to(dtype), BINS[kind])


def per_dimension(dist: Multicategorical) -> list[Categorical]:
    return [Categorical(logits=x) for x in dist.logits.split(dist.bins.num_bins, -1)]


# -- bins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [2, 3, 11, 100, 255, 998, 1001])
def test_index_action_index_is_exact(num_bins: int) -> None:
    bins = ActionBins.build([-2.3, -1.0, 0.0, -1e3], [0.7, 1.0, 1e-3, 1e3], num_bins)
    index = torch.arange(num_bins).unsqueeze(-1).expand(-1, 4)
    action = bins.action(index)
    assert torch.equal(bins.index(action), index)
    assert torch.equal(action[0], bins.low) and torch.equal(action[-1], bins.high)
    torch.testing.assert_close(action[:, 0], torch.linspace(-2.3, 0.7, num_bins))
    assert (bins.index(bins.high + 5) == num_bins - 1).all() and (bins.index(bins.low - torch.inf) == 0).all()


@pytest.mark.parametrize("num_bins", [2, 3, 11])
def test_the_border_between_two_bins_is_half_way(num_bins: int) -> None:
    low, high = torch.tensor([[-1.0, 0.3, -2.0], [1.0, 0.7, 5.0]], dtype=torch.float64)
    bins = ActionBins.build(low, high, num_bins)
    index = torch.arange(num_bins).unsqueeze(-1).expand(-1, 3)
    half = 0.499 * (high - low) / (num_bins - 1)
    for side in (-1, 1):
        assert torch.equal(bins.index(bins.action(index) + side * half), index)


# -- probabilities --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
def test_log_prob_is_the_sum_over_dimensions(kind: str, batch: tuple[int, ...]) -> None:
    dist = make(kind, *batch)
    index = dist.sample_index((5,))
    assert index.shape == (5, *batch, 3) and index.dtype == torch.int64
    expected = sum(d.log_prob(index[..., k]) for k, d in enumerate(per_dimension(dist)))
    assert expected.shape == (5, *batch)
    for value in (index, index.int(), dist.action(index)):
        torch.testing.assert_close(dist.log_prob(value), expected)
    assert dist.log_prob(index[0]).shape == dist.expand((2, *batch)).log_prob(index[:2]).shape[1:] == batch


@both
def test_moments_mode_and_entropy(kind: str) -> None:
    dist, parts = make(kind, 3), per_dimension(make(kind, 3))
    values = [torch.linspace(float(LOW[d]), float(HIGH[d]), count) for d, count in enumerate(BINS[kind])]
    pairs = list(zip(parts, values, strict=True))
    mean = torch.stack([part.probs @ x for part, x in pairs], -1)
    second = [(part.probs * (x - mean[:, d : d + 1]).square()).sum(-1) for d, (part, x) in enumerate(pairs)]
    expected = {
        "mean": mean,
        "variance": torch.stack(second, -1),
        "mode": torch.stack([x[part.probs.argmax(-1)] for part, x in pairs], -1),
        "log_normalizer": sum(x.logsumexp(-1) for x in dist.logits.split(BINS[kind], -1)),
    }
    torch.testing.assert_close({name: getattr(dist, name) for name in expected}, expected)
    torch.testing.assert_close(dist.entropy(), sum(part.entropy() for part in parts))
    torch.testing.assert_close(dist.probs.sum(-1), torch.ones(3, 3))
    assert torch.equal(dist.deterministic_sample, dist.action(dist.mode_index))
    assert dist.support.check(dist.sample((100,))).all()


@both
def test_kl_is_the_expected_log_ratio(kind: str, all_indices: Any) -> None:
    p, q = make(kind), make(kind, seed=1)
    index = all_indices(BINS[kind])
    expected = (p.log_prob(index).exp() * (p.log_prob(index) - q.log_prob(index))).sum()
    torch.testing.assert_close(kl_divergence(p, q), expected)


@both
def test_extreme_logits_leave_no_nan(kind: str) -> None:
    logits = torch.zeros(sum(BINS[kind]))
    logits[0], logits[1] = 1e4, -torch.inf
    dist = Multicategorical(logits.requires_grad_(), LOW, HIGH, BINS[kind])
    total = dist.entropy() + kl_divergence(dist, make(kind)) + dist.log_prob(dist.mode) + dist.mean.sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite() and gradient.isfinite().all()


# -- reparametrized samples -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_straight_through(kind: str, temperature: float) -> None:
    dist = make(kind, 4)
    dist.straight_through_temperature = temperature
    torch.manual_seed(0)
    action = dist.rsample((7,))
    assert action.shape == (7, 4, 3) and torch.equal(action, dist.action(dist.index(action)))
    torch.manual_seed(0)
    relaxed = ((dist._perturbed((7,)) / temperature).softmax(-1) * dist.bins.values).sum(-1)
    gradient, expected = (torch.autograd.grad(x.sum(), dist.logits, retain_graph=True)[0] for x in (action, relaxed))
    assert gradient.abs().sum() > 0.01
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        torch.manual_seed(0)
        torch.testing.assert_close(dist.rsample((7,)), action.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("bins", [(3, 4), (4, 3)])
def test_relaxed_log_prob_has_the_gradient_of_the_entropy(bins: tuple[int, int]) -> None:
    """Of a bin's log-probability alone the mean gradient is 0, and SAC's actor would not feel its entropy."""
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.5, -0.5, 0.0], dtype=torch.float64).requires_grad_()
    dist = Multicategorical(logits.expand(20_000, 7), low=-1.0, high=1.0, num_bins=bins)
    action = dist.rsample()
    log_prob, plain = dist.log_prob(action), dist.log_prob(action.detach())
    torch.testing.assert_close(log_prob, plain)
    got, ignored, exact = (
        torch.autograd.grad(x.mean(), logits, retain_graph=True)[0] for x in (log_prob, plain, -dist.entropy())
    )
    assert ignored.abs().max() < 0.02
    assert torch.cosine_similarity(got, exact, dim=0) > 0.9
    assert 0.3 < got.norm() / exact.norm() < 3


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_bins": 1}, "num_bins must be at least 2, got 1"),
        ({"num_bins": [3, 1]}, r"num_bins must be at least 2, got \[3, 1\]"),
        ({"high": [1.0, math.inf]}, r"needs a bounded action space .*high=\[1.0, inf\]"),
        ({"low": [-torch.finfo().max] * 2, "high": [torch.finfo().max] * 2}, "needs a bounded action space"),
        ({"low": [-1.0, math.nan]}, "needs a bounded action space"),
        ({"low": [1.0, -1.0]}, r"low must be below high, got low=\[1.0, -1.0\]"),
        ({"num_bins": [3, 3, 3]}, "must agree on the number of action dimensions, got 2, 2 and 3"),
        ({"low": torch.zeros(1, 2)}, r"vectors \[D\], got shapes \[1, 2\] and \[2\]"),
        ({"logits": torch.zeros(5, 7)}, r"one entry per bin \(6 for num_bins=\[3, 3\]\), got shape \[5, 7\]"),
        ({"low": None}, "needs low, high and num_bins, or bins, got neither"),
    ],
)
def test_bad_arguments(arguments: dict, sentence: str) -> None:
    defaults = {"logits": torch.zeros(5, 6), "low": [-1.0, -1.0], "high": [1.0, 1.0], "num_bins": 3}
    with pytest.raises(ValueError, match=sentence):
        Multicategorical(**(defaults | arguments))


def test_kl_needs_the_same_bins() -> None:
    with pytest.raises(ValueError, match=r"got num_bins=\[4, 4, 4\] and \[3, 5, 2\]"):
        kl_divergence(make("equal"), make("ragged"))


def test_numbers_take_the_dimensions_from_the_logits() -> None:
    assert Multicategorical(torch.zeros(33), -1.0, 1.0, 11).event_shape == (3,)
