"""The distribution over bins of a box, and its actor."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from torchrl_reg.modules import ActionBins, Multicategorical

LOW, HIGH = torch.tensor([-2.3, -1.0, 0.0]), torch.tensor([0.7, 1.0, 1e-3])
BINS = {"equal": [4, 4, 4], "ragged": [3, 5, 2]}


def make(kind: str, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Multicategorical:
    logits = 2 * torch.randn(*batch, sum(BINS[kind]), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Multicategorical(logits.requires_grad_(), LOW.to(dtype), HIGH.to(dtype), BINS[kind])


def per_dimension(dist: Multicategorical) -> list[Categorical]:
    return [Categorical(logits=x) for x in dist.logits.split(dist.bins.num_bins, -1)]


def all_indices(num_bins: list[int]) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(k) for k in num_bins))


@pytest.mark.parametrize("kind", BINS)
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
def test_log_prob_is_the_sum_over_dimensions(kind: str, batch: tuple[int, ...]) -> None:
    dist = make(kind, *batch)
    index = dist.sample_index((5,))
    assert index.shape == (5, *batch, 3) and index.dtype == torch.int64
    expected = sum(d.log_prob(index[..., k]) for k, d in enumerate(per_dimension(dist)))
    assert dist.log_prob(index).shape == (5, *batch)
    torch.testing.assert_close(dist.log_prob(index), expected)
    torch.testing.assert_close(dist.log_prob(dist.action(index)), expected)
    assert dist.log_prob(index[0].int()).shape == batch


@pytest.mark.parametrize("kind", BINS)
def test_probabilities_sum_to_one(kind: str) -> None:
    dist = make(kind, 2)
    log_prob = dist.log_prob(all_indices(BINS[kind]).unsqueeze(1))
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(2))
    torch.testing.assert_close(dist.probs.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize("kind", BINS)
@pytest.mark.parametrize("reparametrized", [False, True])
def test_frequencies(kind: str, reparametrized: bool) -> None:
    torch.manual_seed(0)
    dist = make(kind)
    index = dist.index(dist.rsample((20_000,))) if reparametrized else dist.sample_index((20_000,))
    for d, count in enumerate(BINS[kind]):
        expected = per_dimension(dist)[d].probs * 20_000
        observed = torch.bincount(index[:, d], minlength=count)
        assert ((observed - expected).square() / expected).sum() < 20  # chi-square, at most 4 degrees of freedom


@pytest.mark.parametrize("num_bins", [2, 3, 11, 100, 255, 998, 1001])
def test_index_action_index_is_exact(num_bins: int) -> None:
    bins = ActionBins.build([-2.3, -1.0, 0.0, -1e3], [0.7, 1.0, 1e-3, 1e3], num_bins)
    index = torch.arange(num_bins).unsqueeze(-1).expand(-1, 4)
    action = bins.action(index)
    assert torch.equal(bins.index(action), index)
    assert torch.equal(action[0], bins.low) and torch.equal(action[-1], bins.high)
    torch.testing.assert_close(action[:, 0], torch.linspace(-2.3, 0.7, num_bins))
    assert (bins.index(bins.high + 5) == num_bins - 1).all() and (bins.index(bins.low - torch.inf) == 0).all()


def test_actions_between_bins_go_to_the_nearest() -> None:
    dist = Multicategorical(torch.zeros(2 * 11), -1.0, 1.0, 11)
    assert dist.index(torch.tensor([0.09, 0.11])).tolist() == [5, 6]


@pytest.mark.parametrize("num_bins", [2, 3, 11])
def test_the_border_between_two_bins_is_half_way(num_bins: int) -> None:
    low, high = torch.tensor([-1.0, 0.3, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.7, 5.0], dtype=torch.float64)
    bins = ActionBins.build(low, high, num_bins)
    index = torch.arange(num_bins).unsqueeze(-1).expand(-1, 3)
    half = 0.499 * (high - low) / (num_bins - 1)
    for side in (-1, 1):
        assert torch.equal(bins.index(bins.action(index) + side * half), index)


@pytest.mark.parametrize("kind", BINS)
def test_moments_mode_and_entropy(kind: str) -> None:
    dist = make(kind, 3)
    for d, reference in enumerate(per_dimension(dist)):
        values = torch.linspace(float(LOW[d]), float(HIGH[d]), BINS[kind][d])
        torch.testing.assert_close(dist.mean[:, d], reference.probs @ values)
        deviation = (values - (reference.probs @ values).unsqueeze(-1)).square()
        torch.testing.assert_close(dist.variance[:, d], (reference.probs * deviation).sum(-1))
        torch.testing.assert_close(dist.mode[:, d], values[reference.probs.argmax(-1)])
    torch.testing.assert_close(dist.entropy(), sum(d.entropy() for d in per_dimension(dist)))
    expected = sum(x.logsumexp(-1) for x in dist.logits.split(BINS[kind], -1))
    torch.testing.assert_close(dist.log_normalizer, expected)
    assert torch.equal(dist.deterministic_sample, dist.action(dist.mode_index))
    assert dist.support.check(dist.sample((100,))).all()
    assert dist.expand((2, 3)).log_prob(dist.mode).shape == (2, 3)


@pytest.mark.parametrize("kind", BINS)
def test_kl_is_the_expected_log_ratio(kind: str) -> None:
    p, q = make(kind), make(kind, seed=1)
    index = all_indices(BINS[kind])
    expected = (p.log_prob(index).exp() * (p.log_prob(index) - q.log_prob(index))).sum()
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert kl_divergence(p, p) == 0


def test_kl_needs_the_same_bins() -> None:
    with pytest.raises(ValueError, match=r"got num_bins=\[4, 4, 4\] and \[3, 5, 2\]"):
        kl_divergence(make("equal"), make("ragged"))


@pytest.mark.parametrize("kind", BINS)
def test_gradients(kind: str) -> None:
    width, index = sum(BINS[kind]), torch.tensor([[0, 3, 1], [2, 1, 0]])

    def everything(logits: Tensor) -> tuple[Tensor, ...]:
        dist = Multicategorical(logits, LOW.double(), HIGH.double(), BINS[kind])
        other = Multicategorical(logits.flip(0), LOW.double(), HIGH.double(), BINS[kind])
        moments = dist.mean, dist.variance, dist.log_normalizer
        return dist.log_prob(index), dist.entropy(), kl_divergence(dist, other), *moments

    logits = torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(everything, logits.requires_grad_())


@pytest.mark.parametrize("kind", BINS)
def test_extreme_logits_leave_no_nan(kind: str) -> None:
    logits = torch.zeros(sum(BINS[kind]))
    logits[0], logits[1] = 1e4, -torch.inf
    dist = Multicategorical(logits.requires_grad_(), LOW, HIGH, BINS[kind])
    total = dist.entropy() + kl_divergence(dist, make(kind)) + dist.log_prob(dist.mode) + dist.mean.sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("kind", BINS)
def test_straight_through(kind: str) -> None:
    dist = make(kind, 4)
    torch.manual_seed(0)
    action = dist.rsample((7,))
    assert action.shape == (7, 4, 3) and torch.equal(action, dist.action(dist.index(action)))
    (gradient,) = torch.autograd.grad(action.sum(), dist.logits, retain_graph=True)
    torch.manual_seed(0)
    relaxed = (dist._perturbed((7,)).softmax(-1) * dist.bins.values).sum(-1)
    (expected,) = torch.autograd.grad(relaxed.sum(), dist.logits)
    assert gradient.abs().sum() > 0.01
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        torch.manual_seed(0)
        torch.testing.assert_close(dist.rsample((7,)), action.detach(), rtol=0, atol=0)


def test_a_colder_relaxation_has_another_gradient() -> None:
    dist = make("equal", 4)
    gradients = []
    for temperature in (1.0, 0.2):
        torch.manual_seed(0)
        dist.straight_through_temperature = temperature
        gradients.append(torch.autograd.grad(dist.rsample().sum(), dist.logits, retain_graph=True)[0])
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("kind", BINS)
def test_compiles_in_one_graph(kind: str) -> None:
    bins = ActionBins.build(LOW, HIGH, BINS[kind])

    def both(logits: Tensor, action: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        dist = Multicategorical(logits, bins=bins)
        sampled = dist.sample(), dist.rsample(), dist.mode
        return dist.log_prob(action), dist.log_prob(index), dist.entropy(), *sampled

    dist = make(kind, 6)
    index = dist.sample_index()
    compiled = torch.compile(both, fullgraph=True, backend="eager")(dist.logits, dist.action(index), index)
    torch.testing.assert_close(compiled[0], dist.log_prob(index))
    torch.testing.assert_close(compiled[0], compiled[1])
    torch.testing.assert_close(compiled[2], dist.entropy())
    assert torch.equal(compiled[3], dist.action(dist.index(compiled[3])))


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


def test_bad_values() -> None:
    with pytest.raises(ValueError, match=r"value must have shape \[\*B, 3\], got \[4, 2\]"):
        make("equal", 4).log_prob(torch.zeros(4, 2))


def test_numbers_take_the_dimensions_from_the_logits() -> None:
    assert Multicategorical(torch.zeros(33), -1.0, 1.0, 11).event_shape == (3,)


def test_distribution_serves_a_probabilistic_actor() -> None:
    bins = ActionBins.build(LOW, HIGH, 4)
    policy = ProbabilisticActor(
        TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Multicategorical,
        distribution_kwargs={"bins": bins},
        return_log_prob=True,
    )
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE):
        with set_exploration_type(kind):
            td = policy(TensorDict({"observation": torch.randn(5, 12)}, [5]))
        assert torch.equal(td["action"], bins.action(bins.index(td["action"])))
        assert td["action_log_prob"].shape == (5,)


def test_relaxed_log_prob_has_the_gradient_of_the_entropy() -> None:
    """Of a bin's log-probability alone the mean gradient is 0, and SAC's actor would not feel its entropy."""
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.5, -0.5, 0.0], dtype=torch.float64).requires_grad_()
    for bins in ((3, 4), (4, 3)):
        dist = Multicategorical(logits.expand(20_000, 7), low=-1.0, high=1.0, num_bins=bins)
        action = dist.rsample()
        log_prob = dist.log_prob(action)
        torch.testing.assert_close(log_prob, dist.log_prob(action.detach()))
        (got,) = torch.autograd.grad(log_prob.mean(), logits, retain_graph=True)
        (plain,) = torch.autograd.grad(dist.log_prob(action.detach()).mean(), logits, retain_graph=True)
        (exact,) = torch.autograd.grad(-dist.entropy().mean(), logits)
        assert plain.abs().max() < 0.02
        assert torch.cosine_similarity(got, exact, dim=0) > 0.9
        assert 0.3 < got.norm() / exact.norm() < 3
