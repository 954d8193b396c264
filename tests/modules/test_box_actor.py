"""Contract of the actors on a box: keys, densities, exploration, dtypes, compilation, errors.

The tanh-normal actor is TorchRL's own, with bounds that are moved and compared once.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal

from torchrl_reg import modules
from torchrl_reg.modules import gaussian_actor

WITH_DENSITY = ("multicategorical", "autoregressive", "flow", "gaussian")
ACTORS = (*WITH_DENSITY, "sampler")
OURS = [kind for kind in ACTORS if kind != "gaussian"]  # composed of TorchRL's parts


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE])
@pytest.mark.parametrize("kind", OURS)
def test_it_writes_an_action_and_what_belongs_to_it(
    kind: str, exploration: ExplorationType, batch: tuple[int, ...], make: Any, states: Any
) -> None:
    key: Any = ("agent", "action") if batch == (1,) else "action"
    actor, td = make(kind, action_key=key), states(*batch)
    dist = None if kind == "sampler" else actor.get_dist(td)
    assert list(td.keys()) == ["observation"]
    with set_exploration_type(exploration):
        action, again = actor(td)[key], actor(states(*batch))[key]
    assert set(td.keys(True, True)) == {"observation", *actor.out_keys}
    assert actor.stored_action_key == key and action.shape == (*batch, 3)
    assert (action >= torch.tensor([-2.3, -1.0, 0.0])).all() and (action <= torch.tensor([0.7, 1.0, 3.0])).all()
    if batch == (3, 2):
        assert torch.equal(action, again) == (exploration is not ExplorationType.RANDOM)
    if dist is None:
        return
    written = td[actor.log_prob_key]
    assert written.shape == batch
    torch.testing.assert_close(written, dist.log_prob(action), rtol=0, atol=0.02 if kind == "flow" else 1e-6)
    if exploration is not ExplorationType.RANDOM:
        assert torch.equal(action, dist.deterministic_sample)
    if kind != "flow":
        assert torch.equal(dist.action(td[actor.index_key]), action)


def axes(actor: Any) -> list[tuple[Tensor, Tensor]]:
    """By dimension: its bins, or points dense towards the bounds, where a density may be steep, and their widths."""
    if hasattr(actor, "bins"):
        pairs = zip(actor.bins.values, actor.bins.num_bins, strict=True)
        return [(values[:k], torch.ones(k, dtype=torch.float64)) for values, k in pairs]
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    box = zip([-2.3, -1.0], [0.7, 1.0], strict=True)
    return [(low + (high - low) * (3 * t**2 - 2 * t**3), 6 * t * (1 - t) * (high - low) / 400) for low, high in box]


@pytest.mark.parametrize("kind", WITH_DENSITY)
def test_its_density_integrates_to_one_and_is_that_of_its_samples(kind: str, make: Any, states: Any) -> None:
    actor = make(kind, 2).double()
    dist = actor.get_dist(states(dtype=torch.float64))
    points, widths = zip(*axes(actor), strict=True)
    density = dist.log_prob(torch.cartesian_prod(*points)).exp()
    mass = (density * torch.cartesian_prod(*widths).prod(-1)).reshape(*map(len, points))
    torch.testing.assert_close(mass.sum(), torch.ones_like(mass.sum()), rtol=0, atol=2e-3)
    torch.manual_seed(0)
    sample, side = dist.sample((20_000,)), 20 if len(points[0]) == 400 else 1  # points of a cell, by dimension
    edges = [(each[side - 1 : -1 : side] + each[side::side]) / 2 for each in points]
    x, y = (torch.bucketize(sample[:, d].contiguous(), edges[d]) for d in range(2))
    cells = len(edges[0]) + 1, len(edges[1]) + 1
    observed = torch.bincount(x * cells[1] + y, minlength=cells[0] * cells[1])
    expected = 20_000 * mass.reshape(cells[0], side, cells[1], side).sum((1, 3)).flatten()
    enough = expected > 10
    assert enough.sum() > 5
    assert ((observed - expected).square() / expected)[enough].mean() < 1.5


@pytest.mark.parametrize("kind", WITH_DENSITY)
def test_gradients_are_right_and_reach_every_weight_from_the_bounds_too(kind: str, make: Any, states: Any) -> None:
    actor = make(kind).double()
    low, high = torch.tensor([[-2.3, -1.0, 0.0], [0.7, 1.0, 3.0]], dtype=torch.float64)
    actions = torch.stack([low, high, high + 1, 0.3 * low + 0.7 * high])

    def log_prob(observation: Tensor, action: Tensor) -> Tensor:
        return actor.get_dist(TensorDict({"observation": observation}, [2])).log_prob(action)

    observation = states(2, dtype=torch.float64)["observation"].requires_grad_()
    inside = actions[3:].clone().requires_grad_(kind in WITH_DENSITY[2:])
    assert torch.autograd.gradcheck(log_prob, (observation, inside))
    total = log_prob(observation, actions.unsqueeze(1))
    assert total.isfinite().all() and torch.equal(total[1], total[2])
    total.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in actor.parameters())


@pytest.mark.parametrize("kind", ACTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_has_the_dtype_of_its_networks(kind: str, dtype: torch.dtype, make: Any, states: Any) -> None:
    exact = dtype == torch.bfloat16 and kind in ("multicategorical", "autoregressive")  # bins are not rounded
    assert make(kind).to(dtype)(states(3, dtype=dtype))["action"].dtype == (torch.float32 if exact else dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_densities_near_the_bounds_are_finite_in_half_precision(dtype: torch.dtype) -> None:
    points = torch.tensor([[-1.0], [0.999], [0.99], [1.0]], dtype=dtype)
    u = modules.box_actor.unsquashed(points, torch.tensor(-1.0, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    assert u.isfinite().all() and u[3] == -u[0] > 2


def test_the_nearest_bin_is_the_one_played_in_bfloat16() -> None:
    torch.manual_seed(0)
    torso = torch.nn.Linear(4, 22)
    actor = modules.MulticategoricalActor(torso, low=[100.0, -1.0], high=[101.0, 1.0], num_bins=11).to(torch.bfloat16)
    data = actor(TensorDict({"observation": torch.randn(64, 4, dtype=torch.bfloat16)}, [64]))
    assert (actor.bins().index(data["action"]) == data["action_index"]).all()
    assert actor.double().bins().values.dtype == torch.float64


def test_an_autoregressive_actor_takes_the_dtype_of_its_torso() -> None:
    torso = torch.nn.Linear(4, 8).double()
    actor = modules.AutoregressiveMulticategoricalActor(torso, 8, low=[-1.0] * 2, high=[1.0] * 2, num_bins=5)
    data = actor(TensorDict({"observation": torch.randn(3, 4, dtype=torch.float64)}, [3]))
    assert data["action"].dtype == torch.float64


@pytest.mark.parametrize("kind", ACTORS)
def test_it_can_be_called_by_keyword(kind: str, make: Any, states: Any) -> None:
    data = states(3)
    found = make(kind)(observation=data["observation"])
    assert (found if isinstance(found, torch.Tensor) else found[0]).shape[0] == 3


@pytest.mark.parametrize("kind", ["flow", "sampler"])
def test_one_on_a_torso_takes_its_dtype(kind: Any, states: Any) -> None:
    build = {"flow": modules.FlowActor, "sampler": modules.StochasticSamplerActor}[kind]
    actor = build(nn.Linear(4, 8).bfloat16(), 8, low=torch.tensor([-2.3, -1.0]), high=torch.tensor([0.7, 1.0]))
    assert actor(states(3, dtype=torch.bfloat16))["action"].dtype == actor.low.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ACTORS)
def test_its_state_is_its_parameters_and_it_is_copied(kind: str, make: Any, states: Any) -> None:
    actor = make(kind)
    assert set(actor.state_dict()) == {name for name, _ in actor.named_parameters()}
    twin = pickle.loads(pickle.dumps(copy.deepcopy(actor)))
    torch.manual_seed(0)
    first = actor(states(7))["action"]
    torch.manual_seed(0)
    assert torch.equal(twin(states(7))["action"], first)


@pytest.mark.parametrize("kind", WITH_DENSITY)
def test_distributions_outlive_a_swap_of_parameters(kind: str, make: Any, states: Any) -> None:
    """Losses build online and target distributions from one module, and score afterwards."""
    online, other, td = make(kind), make(kind), states(7)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    action = online(td.clone())["action"].detach()
    with TensorDict.from_module(other).to_module(online):
        swapped = online.get_dist(td)
    torch.testing.assert_close(swapped.log_prob(action), other.get_dist(td).log_prob(action))
    assert not torch.allclose(swapped.log_prob(action), online.get_dist(td).log_prob(action))


@pytest.mark.parametrize("kind", WITH_DENSITY)
def test_it_compiles_in_one_graph(kind: str, make: Any, states: Any) -> None:
    actor, td, replayed = make(kind), states(5), torch.full((5, 3), 0.5)

    def both(td: TensorDict, action: Tensor) -> tuple[Tensor, Tensor]:
        return actor(td)["action"], actor.get_dist(td).log_prob(action)

    action, log_prob = torch.compile(both, fullgraph=True, backend="eager")(td, replayed)
    dist = actor.get_dist(td)
    torch.testing.assert_close(log_prob, dist.log_prob(replayed))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(action), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["autoregressive", "flow", "sampler"])
def test_a_mean_without_a_closed_form_is_refused(kind: str, make: Any, states: Any) -> None:
    with set_exploration_type(ExplorationType.MEAN), pytest.raises(NotImplementedError, match="no closed-form mean"):
        make(kind)(states())


# -- bounds, and what is refused ------------------------------------------------------------------------------------


def test_a_number_bounds_every_dimension() -> None:
    actor = modules.StochasticSamplerActor(nn.Identity(), 4, low=-1.0, high=[1.0, 2.0])
    assert actor.low.tolist() == [-1.0, -1.0] and len(actor.high) == 2


def test_squashed_samples_lie_in_the_box_whatever_is_rounded() -> None:
    actor = modules.StochasticSamplerActor(nn.Identity(), 4, low=torch.linspace(-3.0, -1.0, 200), high=0.1)
    for u in (-20.0, 20.0):
        action = actor.squashed(torch.full((200,), u))
        assert (action >= actor.low).all() and (action <= actor.high).all()
    assert (actor.low + (actor.high - actor.low) > actor.high).any()


REFUSED = [
    ("flow", {"high": [1.0, torch.inf]}, "needs a bounded action space"),
    ("flow", {"low": [1.0, 1.0]}, "low must be below high"),
    ("flow", {"low": torch.zeros(1, 2)}, r"numbers or vectors \[D\], got shapes \[1, 2\] and"),
    ("sampler", {"low": [0.0] * 2, "high": [1.0] * 3}, r"numbers or vectors \[D\], got shapes \[2\] and \[3\]"),
    ("flow", {"num_layers": 1}, "num_layers must be at least 2 for 2 action dimensions, got 1"),
    ("flow", {"num_cells": 0}, "must be >= 1, got 8, 4 and 0"),
    ("flow", {"max_log_scale": 0.0}, "max_log_scale must be > 0, got 0.0"),
    ("autoregressive", {"num_cells": 0}, "num_cells and num_features must be >= 1, got 0 and 8"),
    ("autoregressive", {"num_bins": 1}, "num_bins must be at least 2, got 1"),
    ("gaussian", {"scale_lb": 0.0}, "scale_lb must be > 0, got 0.0"),
    ("gaussian", {"scale_mapping": "cube"}, "scale_mapping must be one of tensordict's mappings"),
]


@pytest.mark.parametrize(("kind", "arguments", "sentence"), REFUSED)
def test_arguments_that_do_not_fit(kind: str, arguments: dict[str, Any], sentence: str, make: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(kind, 2, **{"low": [-1.0, -1.0], "high": [1.0, 1.0]} | arguments)


@pytest.mark.parametrize("kind", WITH_DENSITY[:3])
def test_actions_of_another_width(kind: str, make: Any, states: Any) -> None:
    with pytest.raises(ValueError, match=r"value must have shape \[\*B, 3\], got \[4, 2\]"):
        make(kind).get_dist(states(4)).log_prob(torch.zeros(4, 2))


BOX = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


@pytest.mark.parametrize("network", [None, nn.Linear, "torso"], ids=repr)
@pytest.mark.parametrize(
    "build",
    [
        lambda network: modules.gaussian_actor(network, **BOX),
        lambda network: modules.FlowActor(network, 4, **BOX),
        lambda network: modules.StochasticSamplerActor(network, 4, **BOX),
        lambda network: modules.MulticategoricalActor(network, **BOX, num_bins=3),
        lambda network: modules.AutoregressiveMulticategoricalActor(network, 4, **BOX, num_bins=3),
        lambda network: modules.ImplicitQuantileNetwork(network, num_features=4, num_actions=2),
        lambda network: modules.CategoricalQActor(network, spec=Categorical(2)),
        lambda network: modules.FixedQuantileQActor(network, spec=Categorical(2)),
        lambda network: modules.QuantileQActor(network, spec=Categorical(2)),
        modules.SingleDimensionActor,
    ],
)
def test_what_is_no_network_is_refused_when_it_is_given(build: Any, network: Any) -> None:
    with pytest.raises(ValueError, match=r"(network|torso|actor) must be a.*, got [^\n]*\.$"):
        build(network)


# -- the tanh-normal actor ------------------------------------------------------------------------------------------


def test_the_tanh_normal_keeps_its_bounds_and_follows_its_network(make: Any, states: Any) -> None:
    actor = make("gaussian", 2)
    with torch.inference_mode():  # what is made here has no gradient later
        actor(states(5))
    for rows in (states(5), states(5), states(1), states(5, dtype=torch.float64)):
        dtype = rows["observation"].dtype
        actor.to(dtype)
        dist, (loc, scale) = actor.get_dist(rows), actor.module[0](rows.clone()).select("loc", "scale").values()
        low, high = torch.tensor([[-2.3, -1.0], [0.7, 1.0]], dtype=dtype)
        plain = TanhNormal(loc, scale, low=low, high=high)
        torch.manual_seed(0)
        sample = dist.sample()
        torch.manual_seed(0)
        torch.testing.assert_close(sample, plain.sample(), rtol=0, atol=0)
        torch.testing.assert_close(dist.log_prob(sample), plain.log_prob(sample), rtol=0, atol=0)
        dist.rsample().sum().backward()
        assert not sample.requires_grad


def test_keys_and_scales_of_the_tanh_normal(make: Any, states: Any) -> None:
    actor = make("gaussian", scale_lb=0.3, action_key=("agent", "action"))
    td = states(50)
    td["observation"] *= 1e3
    actor(td)
    assert actor.stored_action_key == ("agent", "action")
    assert {("agent", "action"), ("agent", "action_log_prob"), "loc", "scale"} <= set(td.keys(True, True))
    assert td["scale"].min() == torch.tensor(0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_box_is_exact_in_float64_and_of_the_networks_dtype(dtype: torch.dtype, states: Any) -> None:
    network = nn.Linear(4, 2).to(dtype)
    network.bias.data[0] = 1e4  # every action at the upper bound
    actor = gaussian_actor(network, low=[-0.2], high=[0.1])
    dist = actor.get_dist(states(3, dtype=dtype))
    assert dist.high.item() == torch.tensor(0.1, dtype=dtype).item() and dist.high.dtype == dtype
    action = actor(states(3, dtype=dtype))["action"]
    assert action.dtype == dtype and (action.double() - 0.1).abs().max() < 2 * torch.finfo(dtype).eps
