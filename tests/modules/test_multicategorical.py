"""Bins of a box: their distribution, and the factorized and autoregressive actors, also in TorchRL's losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss, DiscreteSACLoss, SACLoss
from torchrl.objectives.value import GAE

from torchrl_reg.modules import ActionBins, Multicategorical, SingleDimensionActor

LOW, HIGH = torch.tensor([-2.3, -1.0, 0.0]), torch.tensor([0.7, 1.0, 1e-3])
BINS = {"equal": [4, 4, 4], "ragged": [3, 5, 2]}
both = pytest.mark.parametrize("kind", BINS)


def distribution(kind: str, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Multicategorical:
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
    dist = distribution(kind, *batch)
    index = dist.sample_index((5,))
    assert index.shape == (5, *batch, 3) and index.dtype == torch.int64
    expected = sum(d.log_prob(index[..., k]) for k, d in enumerate(per_dimension(dist)))
    assert expected.shape == (5, *batch)
    for value in (index, index.int(), dist.action(index)):
        torch.testing.assert_close(dist.log_prob(value), expected)
    assert dist.log_prob(index[0]).shape == dist.expand((2, *batch)).log_prob(index[:2]).shape[1:] == batch


@both
def test_moments_mode_and_entropy(kind: str) -> None:
    dist, parts = distribution(kind, 3), per_dimension(distribution(kind, 3))
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
    p, q = distribution(kind), distribution(kind, seed=1)
    index = all_indices(BINS[kind])
    expected = (p.log_prob(index).exp() * (p.log_prob(index) - q.log_prob(index))).sum()
    torch.testing.assert_close(kl_divergence(p, q), expected)


@both
def test_extreme_logits_leave_no_nan(kind: str) -> None:
    logits = torch.zeros(sum(BINS[kind]))
    logits[0], logits[1] = 1e4, -torch.inf
    dist = Multicategorical(logits.requires_grad_(), LOW, HIGH, BINS[kind])
    total = dist.entropy() + kl_divergence(dist, distribution(kind)) + dist.log_prob(dist.mode) + dist.mean.sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite() and gradient.isfinite().all()


# -- reparametrized samples -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_straight_through(kind: str, temperature: float) -> None:
    dist = distribution(kind, 4)
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
def test_bad_arguments_of_the_distribution(arguments: dict, sentence: str) -> None:
    defaults = {"logits": torch.zeros(5, 6), "low": [-1.0, -1.0], "high": [1.0, 1.0], "num_bins": 3}
    with pytest.raises(ValueError, match=sentence):
        Multicategorical(**(defaults | arguments))


def test_kl_needs_the_same_bins() -> None:
    with pytest.raises(ValueError, match=r"got num_bins=\[4, 4, 4\] and \[3, 5, 2\]"):
        kl_divergence(distribution("equal"), distribution("ragged"))


def test_numbers_take_the_dimensions_from_the_logits() -> None:
    assert Multicategorical(torch.zeros(33), -1.0, 1.0, 11).event_shape == (3,)


# -- the factorized actor, and actors in TorchRL's losses -----------------------------------------------------------


def test_the_mean_is_an_action_between_the_bins(make: Any, states: Any) -> None:
    actor, td = make("multicategorical"), states(4)
    dist = actor.get_dist(td)
    with set_exploration_type(ExplorationType.MEAN):
        actor(td)
    torch.testing.assert_close(td["action"], dist.mean)
    assert torch.equal(td["action_index"], dist.index(dist.mean))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(td["action_index"]))


def transitions(actor: Any, *batch: int) -> TensorDict:
    """Transitions of ``actor`` at random states."""
    torch.manual_seed(1)
    terminated = torch.rand(*batch, 1) < 0.3
    ends = {"terminated": terminated, "done": terminated | (torch.rand(*batch, 1) < 0.3)}
    following = {"observation": torch.randn(*batch, 4), "reward": torch.randn(*batch, 1), **ends}
    with torch.no_grad():
        return actor(TensorDict({"observation": torch.randn(*batch, 4), "next": following}, batch))


def test_one_dimension_is_summed_over_exactly(make: Any) -> None:
    """DiscreteSACLoss, whose actor term needs no sample."""
    actor, alpha = make("multicategorical", 1), 0.3
    data = transitions(actor, 6)
    data["action_index"] = data["action_index"].squeeze(-1)
    nets = [nn.Linear(4, 3) for _ in range(2)]
    loss = DiscreteSACLoss(
        SingleDimensionActor(actor),
        [TensorDictModule(net, in_keys=["observation"], out_keys=["action_value"]) for net in nets],
        action_space="categorical",
        alpha_init=alpha,
        fixed_alpha=True,
        target_entropy=1.0,
    )
    loss.set_keys(action="action_index")
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(data.clone())
    log_pi = actor.logits(data).log_softmax(-1)
    q = torch.minimum(*(net(data["observation"]) for net in nets))
    torch.testing.assert_close(out["loss_actor"], (log_pi.exp() * (alpha * log_pi - q)).sum(-1).mean())
    assert out["loss_qvalue"].isfinite()
    with pytest.raises(ValueError, match="actor must have one action dimension, got 2"):
        SingleDimensionActor(make("multicategorical", 2))
    with pytest.raises(ValueError, match="independent dimensions, got an Autoregressive"):
        SingleDimensionActor(make("autoregressive", 1))


def check_gradients(loss: torch.Tensor, network: nn.Module | Any) -> None:
    gradients = torch.autograd.grad(loss, list(network), retain_graph=True, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0


@pytest.mark.parametrize("kind", ["multicategorical", "flow"])
def test_sac_differentiates_through_samples(kind: str, make: Any) -> None:
    actor = make(kind, 2)
    nets = [MLP(in_features=6, out_features=1, num_cells=[8]) for _ in range(2)]
    critics = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    loss = SACLoss(actor, critics, target_entropy=-2.0)
    with pytest.warns(UserWarning, match="No target network updater"):
        out = loss(transitions(actor, 16))
    check_gradients(out["loss_actor"], loss.actor_network_params.parameters())


@pytest.mark.parametrize("kind", ["flow", "autoregressive", "multicategorical"])
@pytest.mark.parametrize("cls", [ClipPPOLoss, A2CLoss])
def test_on_policy_losses_and_their_entropy_bonus(kind: str, cls: Any, make: Any) -> None:
    actor, critic = make(kind, 2), ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    with torch.no_grad():
        data = GAE(gamma=0.9, lmbda=0.8, value_network=critic)(transitions(actor, 3, 6))
    torch.manual_seed(2)
    out = cls(actor, critic, entropy_coeff=0.1)(data)
    torch.manual_seed(2)
    dist = actor.get_dist(data)
    sampled = -dist.rsample_and_log_prob((1,))[1] if kind == "flow" else dist.entropy()
    torch.testing.assert_close(out["entropy"], sampled.mean().detach())
    for name in ("loss_objective", "loss_entropy"):
        check_gradients(out[name], actor.parameters())


# -- the autoregressive actor: dimensions that depend on each other -------------------------------------------------


NUM_BINS = [[3, 3, 3], [3, 4, 2]]
both_widths = pytest.mark.parametrize("num_bins", NUM_BINS, ids=["equal", "ragged"])


@both_widths
def test_conditionals_ignore_later_dimensions_and_see_earlier_ones(num_bins: list[int], make: Any, states: Any) -> None:
    dist = make("autoregressive", num_bins=num_bins).get_dist(states())
    for d in range(3):
        for e in range(3):
            index = torch.zeros(3, dtype=torch.int64)
            before = dist.conditionals(index).probs[d]
            index[e] = 1
            changed = not torch.allclose(before, dist.conditionals(index).probs[d], atol=1e-4)
            assert changed == (e < d)


@both_widths
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


@both_widths
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
