"""The flow policy."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal

from torchrl_reg.modules import FlowActor

LOW, HIGH = [-2.3, -1.0, 0.0], [0.7, 1.0, 3.0]


def make(dims: int = 2, perturb: float = 0.2, **arguments) -> FlowActor:
    torch.manual_seed(0)
    actor = FlowActor(nn.Linear(4, 8), 8, low=LOW[:dims], high=HIGH[:dims], num_cells=8, **arguments)
    nn.init.normal_(actor.weight_out, std=perturb)
    nn.init.normal_(actor.bias_out, std=perturb)
    return actor


def observations(*batch: int) -> TensorDict:
    return TensorDict({"observation": torch.randn(*batch, 4, generator=torch.Generator().manual_seed(1))}, batch)


def grid(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Points dense towards the bounds, where the density may be steep, and the widths they stand for."""
    t = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return low + (high - low) * (3 * t**2 - 2 * t**3), 6 * t * (1 - t) * (high - low) / count


@pytest.mark.parametrize("dims", [1, 2])
def test_density_integrates_to_one(dims: int) -> None:
    dist = make(dims).double().get_dist(observations().double())
    axes, weights = zip(*(grid(LOW[d], HIGH[d], 400) for d in range(dims)), strict=True)
    points = torch.cartesian_prod(*axes).reshape(-1, dims)
    weight = torch.cartesian_prod(*weights).reshape(-1, dims).prod(-1)
    total = (dist.log_prob(points).exp() * weight).sum()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_log_prob_of_samples_is_base_minus_log_det(dims: int) -> None:
    actor = make(dims, perturb=0.2).double()
    dist = actor.get_dist(observations().double())
    z = torch.randn(dims, dtype=torch.float64)

    def forward(z: Tensor) -> Tensor:
        return dist._push(z)[0]

    jacobian = torch.autograd.functional.jacobian(forward, z)
    expected = Normal(0.0, 1.0).log_prob(z).sum() - jacobian.slogdet()[1]
    action, pushed = dist._push(z)
    torch.testing.assert_close(pushed, expected)
    torch.testing.assert_close(dist.log_prob(action), expected)


def test_log_prob_of_float32_samples() -> None:
    dist = make(3, perturb=0.1).get_dist(observations(50))
    action, log_prob = dist.rsample_and_log_prob((4,))
    assert action.shape == (4, 50, 3) and log_prob.shape == (4, 50)
    torch.testing.assert_close(dist.log_prob(action), log_prob, rtol=0, atol=0.02)
    assert dist.support.check(action).all()


def test_frequencies() -> None:
    dist = make().double().get_dist(observations().double())
    torch.manual_seed(0)
    x, y = dist.sample((20_000,)).t().contiguous()
    axes, weights = zip(*(grid(LOW[d], HIGH[d], 400) for d in range(2)), strict=True)
    mass = dist.log_prob(torch.cartesian_prod(*axes)).exp() * torch.cartesian_prod(*weights).prod(-1)
    mass = mass.reshape(20, 20, 20, 20).sum((1, 3))  # 20 x 20 cells of 20 x 20 points
    edges = [(a[19:-1:20] + a[20::20]) / 2 for a in axes]
    cell = torch.bucketize(x, edges[0]) * 20 + torch.bucketize(y, edges[1])
    observed, expected = torch.bincount(cell, minlength=400), mass.flatten() * 20_000
    enough = expected > 10
    assert enough.sum() > 50
    assert ((observed - expected).square() / expected)[enough].mean() < 1.5


def test_starts_as_the_tanh_of_a_standard_normal() -> None:
    actor = FlowActor(nn.Linear(4, 8), 8, low=LOW, high=HIGH)
    dist = actor.get_dist(observations(6))
    action = dist.sample()
    plain = TanhNormal(torch.zeros(6, 3), torch.ones(6, 3), low=torch.tensor(LOW), high=torch.tensor(HIGH))
    torch.testing.assert_close(dist.log_prob(action), plain.log_prob(action), rtol=1e-3, atol=1e-3)
    centre = (torch.tensor(LOW) + torch.tensor(HIGH)) / 2
    torch.testing.assert_close(dist.deterministic_sample, centre.expand(6, 3))


def test_one_dimension_is_a_tanh_normal() -> None:
    dist = make(1, num_layers=1).double().get_dist(observations(6).double())
    s, t = dist.couplings[0].scale_and_shift(torch.zeros(6, 1).double())
    plain = TanhNormal(t, s.exp(), low=dist.low, high=dist.high)
    action = dist.sample()
    assert s.abs().min() > 0.01
    torch.testing.assert_close(dist.log_prob(action), plain.log_prob(action))


def test_layers_move_every_dimension_and_depend_on_the_state() -> None:
    dist = make(3, num_layers=2).get_dist(observations(2))
    z = torch.zeros(2, 3)
    moved = [c.scale_and_shift(z)[1] != 0 for c in dist.couplings]
    assert moved[0][0].tolist() == [True, False, True] and moved[1][0].tolist() == [False, True, False]
    assert not torch.allclose(*dist.deterministic_sample)


def test_log_scales_are_bounded() -> None:
    dist = make(3, perturb=100.0, max_log_scale=0.7).get_dist(observations(50))
    s = torch.stack([c.scale_and_shift(torch.randn(50, 3))[0] for c in dist.couplings])
    assert 0.69 < s.abs().max() <= 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_on_and_outside_the_bounds_have_a_finite_density(dtype: torch.dtype) -> None:
    actor = make(3).to(dtype)
    dist = actor.get_dist(observations().to(dtype))
    actions = torch.stack([dist.low, dist.high, dist.high + 1, (dist.low + dist.high) / 2])
    log_prob = dist.log_prob(actions)
    assert log_prob.isfinite().all() and log_prob[1] == log_prob[2]
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in actor.parameters())


def test_gradcheck() -> None:
    actor = make(3, num_layers=3).double()
    action = torch.tensor([[-1.5, 0.3, 0.2], [0.5, -0.9, 2.0]], dtype=torch.float64)
    names = ["weight_in", "weight_out", "bias_out"]

    def log_prob(observation: Tensor, action: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        td = TensorDict({"observation": observation}, [2])
        return torch.func.functional_call(Density(actor), {f"actor.{k}": v for k, v in state.items()}, (td, action))

    inputs = [torch.randn(2, 4, dtype=torch.float64), action, *(getattr(actor, n).detach().clone() for n in names)]
    assert torch.autograd.gradcheck(log_prob, [x.requires_grad_() for x in inputs])


class Density(nn.Module):
    def __init__(self, actor: FlowActor) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, td: TensorDict, action: Tensor) -> Tensor:
        return self.actor.get_dist(td).log_prob(action)


def test_reparametrized_samples_have_gradients_and_samples_have_none() -> None:
    actor = make(2)
    dist = actor.get_dist(observations(5))
    assert not dist.sample().requires_grad
    dist.rsample().sum().backward()
    assert actor.weight_out.grad.any() and actor.torso.weight.grad.any()


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE])
def test_actor_writes_action_and_log_prob(batch: tuple[int, ...], kind: ExplorationType) -> None:
    actor, td = make(3, perturb=0.1), observations(*batch)
    dist = actor.get_dist(td)
    assert list(td.keys()) == ["observation"]
    with set_exploration_type(kind):
        actor(td)
    assert actor.stored_action_key == "action" and set(td.keys()) == {"observation", *actor.out_keys}
    assert td["action"].shape == (*batch, 3) and td["action_log_prob"].shape == batch
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(td["action"]), rtol=0, atol=0.02)
    assert torch.equal(td["action"], dist.deterministic_sample) == (kind is not ExplorationType.RANDOM)


def test_compiles_in_one_graph() -> None:
    actor = make(3, perturb=0.1)

    def both(td: TensorDict, action: Tensor) -> tuple[Tensor, Tensor]:
        return actor(td)["action"], actor.get_dist(td).log_prob(action)

    td, replayed = observations(5), torch.zeros(5, 3)
    action, log_prob = torch.compile(both, fullgraph=True, backend="eager")(td, replayed)
    dist = actor.get_dist(td)
    torch.testing.assert_close(log_prob, dist.log_prob(replayed))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(action), rtol=0, atol=0.02)


def test_what_has_no_closed_form_says_so() -> None:
    actor = make()
    with pytest.raises(NotImplementedError):
        actor.get_dist(observations()).entropy()
    with set_exploration_type(ExplorationType.MEAN), pytest.raises(NotImplementedError, match="no closed-form mean"):
        actor(observations())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"high": [1.0, torch.inf]}, "needs a bounded action space"),
        ({"low": [1.0, 1.0]}, "low must be below high"),
        ({"low": torch.zeros(1, 2)}, r"numbers or vectors \[D\], got shapes \[1, 2\] and"),
        ({"num_layers": 1}, "num_layers must be at least 2 for 2 action dimensions, got 1"),
        ({"num_cells": 0}, "must be >= 1, got 4, 4 and 0"),
        ({"max_log_scale": 0.0}, "max_log_scale must be > 0, got 0.0"),
    ],
)
def test_bad_arguments(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FlowActor(nn.Identity(), 4, **({"low": [-1.0, -1.0], "high": [1.0, 1.0]} | arguments))


def test_bad_values() -> None:
    with pytest.raises(ValueError, match=r"value must have shape \[\*B, 2\], got \[3\]"):
        make().get_dist(observations()).log_prob(torch.zeros(3))


@pytest.mark.parametrize("functional", [False, True])
def test_reset_parameters_recursive_reaches_the_couplings(functional: bool) -> None:
    actor = make(perturb=0.3)
    before = {name: p.clone() for name, p in actor.named_parameters()}
    if functional:
        params = actor.reset_parameters_recursive(TensorDict.from_module(actor))
        after = {name: params[tuple(name.split("."))] for name in before}
    else:
        actor.reset_parameters_recursive()
        after = dict(actor.named_parameters())
    assert not any(after[name].equal(p) for name, p in before.items())
    assert not after["weight_out"].any() and not after["bias_out"].any()
