"""Bins whose dimensions depend on each other."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.modules import AutoregressiveMulticategorical, AutoregressiveMulticategoricalActor, Multicategorical

LOW, HIGH = [-2.3, -1.0, 0.0], [0.7, 1.0, 1e-3]
BINS = {"equal": [3, 3, 3], "ragged": [3, 4, 2]}


def make(num_bins: list[int], **arguments) -> AutoregressiveMulticategoricalActor:
    torch.manual_seed(0)
    actor = AutoregressiveMulticategoricalActor(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()), 8, low=LOW, high=HIGH, num_bins=num_bins, num_cells=16, **arguments
    )
    with torch.no_grad():  # far from uniform, so that differences show
        actor.previous.weight.mul_(8)
        actor.output.weight.mul_(8)
    return actor


def observations(*batch: int) -> TensorDict:
    return TensorDict({"observation": torch.randn(*batch, 4, generator=torch.Generator().manual_seed(1))}, batch)


def all_indices(num_bins: list[int]) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(k) for k in num_bins))


@pytest.mark.parametrize("kind", BINS)
def test_probabilities_sum_to_one(kind: str) -> None:
    dist = make(BINS[kind]).get_dist(observations(2))
    index = all_indices(BINS[kind])
    log_prob = dist.log_prob(index.unsqueeze(1))
    assert log_prob.shape == (math.prod(BINS[kind]), 2)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(2))


@pytest.mark.parametrize("kind", BINS)
def test_conditionals_ignore_later_dimensions_and_see_earlier_ones(kind: str) -> None:
    dist = make(BINS[kind]).get_dist(observations())
    for d in range(3):
        for e in range(3):
            index = torch.zeros(3, dtype=torch.int64)
            before = dist.conditionals(index).probs[d]
            index[e] = 1
            changed = not torch.allclose(before, dist.conditionals(index).probs[d], atol=1e-4)
            assert changed == (e < d)


@pytest.mark.parametrize("kind", BINS)
def test_frequencies(kind: str) -> None:
    dist = make(BINS[kind]).get_dist(observations())
    torch.manual_seed(0)
    sampled = dist.sample_index((20_000,))
    weights = torch.tensor([100, 10, 1])
    index = all_indices(BINS[kind])
    expected = dist.log_prob(index).exp() * 20_000
    observed = ((sampled * weights).sum(-1) == (index * weights).sum(-1).unsqueeze(-1)).sum(-1)
    enough = expected > 5
    assert enough.sum() > 5
    chi_square = ((observed - expected).square() / expected)[enough].sum()
    assert chi_square < 2.5 * enough.sum()


@pytest.mark.parametrize("kind", BINS)
@pytest.mark.parametrize("how", ["constructor", "weights"])
def test_without_conditions_it_is_the_factorized_policy(kind: str, how: str) -> None:
    actor = make(BINS[kind], condition=how != "constructor")
    if how == "weights":
        nn.init.zeros_(actor.previous.weight)
    td = observations(5)
    dist = actor.get_dist(td)
    hidden = actor.features(actor.network(td["observation"])).relu()
    logits = nn.functional.linear(hidden, actor.output.weight * actor.output_mask, actor.output.bias)
    factorized = Multicategorical(logits, LOW, HIGH, BINS[kind])
    index = all_indices(BINS[kind]).unsqueeze(1)
    torch.testing.assert_close(dist.log_prob(index), factorized.log_prob(index), rtol=0, atol=0)
    assert torch.equal(dist.deterministic_sample, factorized.mode)
    torch.testing.assert_close(dist.entropy_estimate(), factorized.entropy(), rtol=0, atol=0)
    for_real = make(BINS[kind]).get_dist(td).log_prob(index)
    assert (for_real - factorized.log_prob(index)).abs().max() > 0.1


def test_one_dimension_is_a_categorical() -> None:
    actor = AutoregressiveMulticategoricalActor(nn.Identity(), 4, low=-1.0, high=1.0, num_bins=5)
    td = observations(6)
    dist = actor.get_dist(td)
    logits = actor.output(actor.features(td["observation"]).relu())
    index = torch.arange(6).unsqueeze(-1) % 5
    torch.testing.assert_close(dist.log_prob(index), logits.log_softmax(-1).gather(-1, index).squeeze(-1))


@pytest.mark.parametrize("kind", BINS)
def test_logits_see_the_units_of_their_own_dimension_and_of_earlier_ones(kind: str) -> None:
    actor = make(BINS[kind])
    starts = [sum(BINS[kind][:d]) for d in range(len(BINS[kind]) + 1)]
    units = actor.features.out_features // len(BINS[kind])
    td, index = observations(5), all_indices(BINS[kind])[-1].expand(5, -1)
    before = [c.clone() for c in actor.get_dist(td).conditionals(index).log_pi.unbind(-2)]
    for d in range(len(BINS[kind])):
        changed = make(BINS[kind])
        with torch.no_grad():
            changed.features.bias[d * units : (d + 1) * units] += 1.0
        after = changed.get_dist(td).conditionals(index).log_pi.unbind(-2)
        moved = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        assert moved == [other >= d for other in range(len(starts) - 1)]


def test_greedy_takes_the_likeliest_bin_of_each_conditional() -> None:
    dist = make(BINS["ragged"]).get_dist(observations(20))
    index = dist.mode_index
    assert torch.equal(dist.conditionals(index).mode_index, index)
    assert torch.equal(dist.action(index), dist.deterministic_sample)


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE])
def test_actor_writes_action_index_and_log_prob(batch: tuple[int, ...], kind: ExplorationType) -> None:
    actor, td = make(BINS["ragged"]), observations(*batch)
    dist = actor.get_dist(td)
    assert list(td.keys()) == ["observation"] and isinstance(dist, AutoregressiveMulticategorical)
    with set_exploration_type(kind):
        actor(td)
    assert actor.stored_action_key == "action" and set(td.keys()) == {"observation", *actor.out_keys}
    assert td["action"].shape == (*batch, 3) and td["action_log_prob"].shape == batch
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(td["action_index"]))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(td["action"]))
    if kind is not ExplorationType.RANDOM:
        assert torch.equal(td["action"], dist.deterministic_sample)


def test_the_torso_runs_once_per_action() -> None:
    calls = []
    actor = make(BINS["equal"])
    actor.network.register_forward_hook(lambda *_: calls.append(1))
    actor(observations(2))
    assert len(calls) == 1


def test_gradients_reach_every_weight() -> None:
    actor = make(BINS["equal"])
    td = actor(observations(16))
    actor.get_dist(td).log_prob(td["action_index"]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in actor.parameters())
    assert not actor.previous.weight.grad[actor.previous_mask == 0].any()
    assert not actor.output.weight.grad[actor.output_mask == 0].any()


def test_gradcheck() -> None:
    actor = make(BINS["ragged"]).double()
    actor.requires_grad_(False)
    index = torch.tensor([[0, 3, 1], [2, 1, 0]])

    def log_prob(observation: Tensor) -> Tensor:
        return actor.get_dist(TensorDict({"observation": observation}, [2])).log_prob(index)

    observation = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(log_prob, observation.requires_grad_())


def test_entropy_is_unbiased_in_value_and_gradient() -> None:
    actor = make(BINS["ragged"]).double()
    dist = actor.get_dist(observations(1).double())
    log_pi = dist.log_prob(all_indices(BINS["ragged"]).unsqueeze(1))
    exact = -(log_pi.exp() * log_pi).sum(0)
    torch.manual_seed(0)
    estimate = dist.entropy_estimate(20_000)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.02)
    for weight in (actor.previous.weight, actor.features.weight):
        wanted, got = (torch.autograd.grad(h.sum(), weight, retain_graph=True)[0] for h in (exact, estimate))
        assert (got - wanted).norm() < 0.05 * wanted.norm()


def test_compiles_in_one_graph() -> None:
    actor = make(BINS["ragged"])
    td = torch.compile(actor, fullgraph=True, backend="eager")(observations(5))  # samples and scores
    torch.testing.assert_close(td["action_log_prob"], actor.get_dist(td).log_prob(td["action"]))


def test_what_has_no_closed_form_says_so() -> None:
    actor = make(BINS["equal"])
    dist = actor.get_dist(observations())
    with pytest.raises(NotImplementedError, match="no closed-form mean"):
        _ = dist.mean
    with set_exploration_type(ExplorationType.MEAN), pytest.raises(NotImplementedError, match="no closed-form mean"):
        actor(observations())
    with pytest.raises(NotImplementedError, match="depend on the action"):
        actor.logits(observations())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_cells and num_features must be >= 1, got 0 and 8"):
        AutoregressiveMulticategoricalActor(nn.Identity(), 8, low=-1.0, high=1.0, num_bins=3, num_cells=0)
    with pytest.raises(ValueError, match="num_bins must be at least 2, got 1"):
        AutoregressiveMulticategoricalActor(nn.Identity(), 8, low=-1.0, high=1.0, num_bins=1)
    with pytest.raises(ValueError, match=r"value must have shape \[\*B, 3\], got \[2\]"):
        make(BINS["equal"]).get_dist(observations()).log_prob(torch.zeros(2))
