"""Actors on Q-values: a regularizer's policy, means of atoms and of quantiles.

And quantile values are those of the formula, to the last bit, wherever their memory comes from.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.modules import (
    ActionPrior,
    BoltzmannQActor,
    CategoricalQActor,
    EpsilonGreedyModule,
    FixedQuantileQActor,
    ImplicitQuantileNetwork,
    QuantileQActor,
)
from torchrl_reg.objectives import IQNLoss, MunchausenDQNLoss
from torchrl_reg.regularizers import PriorKL

TAU, Q, RHO = 0.5, torch.tensor([0.3, -0.4, 0.6]), torch.tensor([0.7, 0.2, 0.1])


class Constant(nn.Module):
    """The same Q-values everywhere."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return Q.expand(*observation.shape[:-1], 3)


def act(actor: nn.Module, count: int = 20_000, kind: ExplorationType = ExplorationType.RANDOM, **extra: torch.Tensor):
    torch.manual_seed(0)
    with set_exploration_type(kind), torch.no_grad():
        return actor(TensorDict({"observation": torch.zeros(count, 1), **extra}, [count]))


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(
    ("by", "logits"),
    [({"tau": TAU}, Q / TAU), ({"prior": ActionPrior(3, probabilities=RHO, beta=1 / TAU)}, Q / TAU + RHO.log())],
)
def test_boltzmann_samples_its_policy_and_is_greedy_in_it(by: Any, logits: torch.Tensor, one_hot: bool) -> None:
    policy = BoltzmannQActor(QValueActor(Constant(), spec=OneHot(3) if one_hot else Categorical(3)), **by)
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        out = act(policy, kind=kind)
        index = out["action"].long().argmax(-1) if one_hot else out["action"]
        torch.testing.assert_close(out["chosen_action_value"].squeeze(-1), Q[index])
        frequencies = torch.bincount(index, minlength=3) / len(index)
        if kind is ExplorationType.RANDOM:
            torch.testing.assert_close(frequencies, logits.softmax(-1), rtol=0, atol=0.01)
        else:
            assert frequencies[logits.argmax()] == 1


def test_boltzmann_never_takes_a_masked_action() -> None:
    actor = QValueActor(Constant(), spec=Categorical(3), action_mask_key="allowed")
    allowed = torch.tensor([True, True, False]).expand(5_000, 3)
    out = act(BoltzmannQActor(actor, tau=TAU), 5_000, allowed=allowed)
    expected = torch.cat((torch.softmax(Q[:2] / TAU, -1), torch.zeros(1)))
    torch.testing.assert_close(torch.bincount(out["action"], minlength=3) / 5_000, expected, rtol=0, atol=0.03)
    assert (out["action"] != 2).all()


def test_one_temperature_for_loss_and_actor() -> None:
    """One assignment reaches all modules that share the regularizer, the evaluated policy included."""
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    loss = MunchausenDQNLoss(actor, tau=0.5)
    policy = BoltzmannQActor(actor, regularizer=loss.regularizer)
    data = TensorDict({"observation": torch.randn(200, 4)}, [200])
    for tau, greedy in ((1e-9, True), (1e9, False)):
        loss.tau = tau
        assert bool((policy(data.clone())["action"] == actor(data.clone())["action"]).all()) == greedy


def quantile_actor(num_quantiles: int) -> QuantileQActor:
    torch.manual_seed(1)
    net = ImplicitQuantileNetwork(nn.Linear(1, 8), num_features=8, num_actions=3, num_cosines=6, num_cells=8)
    return QuantileQActor(net, spec=Categorical(3), num_quantiles=num_quantiles)


def test_quantile_actor_averages_midpoints_when_deterministic_and_draws_when_exploring() -> None:
    actor = quantile_actor(4)
    out = act(actor, 2, ExplorationType.DETERMINISTIC)
    z = actor.quantile_network(torch.zeros(2, 1), torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(2, 4))
    torch.testing.assert_close(out["action_value"], z.mean(1))
    assert (out["action"] == z.mean(1).argmax(-1)).all()
    values = act(actor, 4_000)["action_value"]
    assert not torch.equal(values[0], values[1])
    exact = act(quantile_actor(1_000), 1, ExplorationType.DETERMINISTIC)["action_value"][0]
    torch.testing.assert_close(values.mean(0), exact, rtol=0, atol=0.01)


def test_atoms_stay_exact_whatever_the_actor_is_cast_to() -> None:
    actor = CategoricalQActor(nn.Linear(1, 7 * 3), num_atoms=7, value_min=-0.3, value_max=0.4, spec=Categorical(3))
    for cast in ("float", "bfloat16", "double"):
        support = getattr(actor, cast)().distribution.support
        assert torch.equal(support, torch.linspace(-0.3, 0.4, 7, dtype=torch.float64))
    logits = torch.zeros(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(actor.distribution.mean(logits), torch.full_like(logits[:, 0], 0.05), rtol=0, atol=1e-15)


def test_fixed_quantiles_are_averaged_by_action() -> None:
    net = nn.Linear(1, 4 * 3)
    out = act(FixedQuantileQActor(net, num_quantiles=4, spec=Categorical(3)), 2)
    torch.testing.assert_close(out["action_value"], net(torch.zeros(2, 1)).unflatten(-1, (4, 3)).mean(1))


PLAIN = QValueActor(Constant(), spec=Categorical(3))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        *((lambda tau=tau: BoltzmannQActor(PLAIN, tau=tau), "tau must be a finite number > 0") for tau in (0.0, -1.0)),
        (lambda: BoltzmannQActor(PLAIN, tau=1.0, prior=ActionPrior(3)), "Either tau or prior or regularizer must be"),
        (lambda: BoltzmannQActor(PLAIN), "Either tau or prior or regularizer must be given"),
        (lambda: quantile_actor(0), "num_quantiles must be >= 1"),
        (
            lambda: act(FixedQuantileQActor(nn.Linear(1, 12), num_quantiles=5, spec=Categorical(3)), 2),
            "The network must have a multiple of 5 outputs",
        ),
    ],
)
def test_arguments_that_do_not_fit(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# -- quantile values ------------------------------------------------------------------------------------------------


def network(cls: type[ImplicitQuantileNetwork] = ImplicitQuantileNetwork) -> ImplicitQuantileNetwork:
    torch.manual_seed(0)
    return cls(nn.Linear(4, 16), num_features=16, num_actions=3, num_cosines=7, num_cells=32)


def formula(net: ImplicitQuantileNetwork, features: Tensor, fractions: Tensor) -> Tensor:
    first, _, last = net.head
    cosines = torch.cos(math.pi * torch.arange(1, 8) * fractions.unsqueeze(-1))
    return last(torch.relu(first(features.unsqueeze(-2) * torch.relu(net.embedding(cosines)))))


@pytest.mark.parametrize("count", [(8, 5), (1, 5), (5,)])  # by row, one row for all, one set for all
@pytest.mark.parametrize("gradients", [True, False])
def test_quantile_values_and_gradients_are_those_of_the_formula(count: tuple[int, ...], gradients: bool) -> None:
    net, results = network(), []
    for call in (net.quantiles, lambda *inputs: formula(net, *inputs)):
        torch.manual_seed(1)
        features, fractions = torch.randn(8, 16, requires_grad=gradients), torch.rand(count, requires_grad=gradients)
        before = features.detach().clone(), fractions.detach().clone()
        with torch.set_grad_enabled(gradients):
            z = call(features, fractions)
        found = [z.detach()]
        if gradients:
            wanted = [features, fractions, *net.embedding.parameters(), *net.head.parameters()]
            found += torch.autograd.grad(z.square().sum(), wanted)
        assert torch.equal(features, before[0]) and torch.equal(fractions, before[1])
        results.append(found)
    assert all(map(torch.equal, *results))


def test_what_a_hook_saw_stays_as_it_was() -> None:
    net, seen, calls = network(), list[Tensor](), list[Tensor]()
    for layer in (net.embedding, net.head[0]):
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    net.head[0].register_full_backward_hook(lambda *_: None)  # refuses to be overwritten
    net.head[1].register_forward_hook(lambda _layer, _inputs, output: calls.append(output))
    net(torch.randn(8, 4), torch.rand(8, 5)).sum().backward()
    assert all((output < 0).any() for output in seen) and len(seen) == 2 and len(calls) == 1


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)])
def test_quantile_values_under_vmap(gradients: bool, dims: tuple[int | None, int | None]) -> None:
    net = network()
    features, fractions = torch.randn(6, 16), torch.rand(6, 5)
    inputs = [x if dim == 0 else x[0] for x, dim in zip((features, fractions), dims, strict=True)]
    rows = [[x[i] if dim == 0 else x for x, dim in zip(inputs, dims, strict=True)] for i in range(6)]
    with torch.set_grad_enabled(gradients):
        together = torch.vmap(net.quantiles, dims)(*inputs)
        apart = torch.stack([net.quantiles(*row) for row in rows])
    torch.testing.assert_close(together, apart)


def test_vmap_over_one_of_several_states() -> None:
    net, here, there, levels = network(), torch.randn(16), torch.randn(6, 16), [torch.rand(3), torch.rand(5)]
    with torch.no_grad():
        together = torch.vmap(lambda state: net.quantiles_of([here, state], levels)[1])(there)
        torch.testing.assert_close(together, torch.stack([net.quantiles(state, levels[1]) for state in there]))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("batch", [(8,), ()])  # fractions by row, or one set for all
def test_several_states_in_one_pass_are_what_they_are_alone(batch: tuple[int, ...], gradients: bool) -> None:
    """And their values may be written into."""
    net, states = network(), [torch.randn(8, 16) for _ in range(2)]
    levels = [torch.rand(*batch, n) for n in (3, 5)]
    with torch.set_grad_enabled(gradients):
        together = [*net.quantiles_of(states, levels), net.quantiles(states[0], levels[0])]
        for z, state, fractions in zip(together, [*states, states[0]], [*levels, levels[0]], strict=True):
            torch.testing.assert_close(z, formula(net, state, fractions))
            expected = 2 * z.detach()
            z *= 2
            torch.testing.assert_close(z.detach(), expected, rtol=0, atol=0)


class Doubled(ImplicitQuantileNetwork):
    def quantiles(self, features: Tensor, fractions: Tensor) -> Tensor:
        return 2 * super().quantiles(features, fractions)


def test_what_a_subclass_or_an_instance_was_given_is_used() -> None:
    net, features, fractions = network(Doubled), torch.randn(8, 16), torch.rand(8, 5)
    torch.testing.assert_close(net.quantiles_of([features], [fractions])[0], 2 * formula(net, features, fractions))
    net = network()
    net.embedding.forward = lambda cosines: torch.zeros(*cosines.shape[:-1], 16)  # type: ignore[method-assign]
    torch.testing.assert_close(net.quantiles(features, fractions), net.head(torch.zeros(8, 5, 16)))
    net.quantiles = lambda state, levels: torch.ones(8, 5, 3)  # type: ignore[method-assign]
    assert bool((net.quantiles_of([features], [fractions])[0] == 1).all())


def test_a_prior_of_the_state_is_that_of_the_acting_policy_too() -> None:
    lean = nn.Linear(1, 3)
    with torch.no_grad():
        lean.weight.zero_()
        lean.bias.copy_(torch.tensor([0.0, 0.0, 8.0]))
    prior = TensorDictModule(lean, ["goal"], ["logits"])
    kl = PriorKL(prior=ActionPrior(3, beta=0.5), network=prior)
    policy = BoltzmannQActor(QValueActor(Constant(), spec=Categorical(3)), regularizer=kl)
    assert policy.in_keys == ["observation", "goal"]
    goal = {"goal": torch.zeros(2_000, 1)}
    out = act(policy, 2_000, **goal)
    assert (out["action"] == 2).float().mean() > 0.99
    state = {"observation": torch.zeros(2_000, 1), **goal}
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        policy.plain(state)
    assert (state["action"] == 2).all()


def test_a_policy_can_be_called_by_keyword() -> None:
    policy = BoltzmannQActor(QValueActor(nn.Linear(4, 3), spec=OneHot(3)), tau=TAU)
    assert policy(observation=torch.randn(5, 4))[0].shape == (5, 3)


@pytest.mark.parametrize("envs", [1, 3, 4])
@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_random_actions_fit_the_spec_of_several_environments(kind: Any, envs: int) -> None:
    """Of one environment, or of all with their dimension, as ``env.action_spec`` has it."""
    for spec in (kind(3), kind(3).expand(envs, *kind(3).shape)):
        module = EpsilonGreedyModule(spec, eps_init=1.0)
        state = {"action": torch.zeros(envs, *kind(3).shape, dtype=spec.dtype)}
        module.plain(state)
        assert state["action"].shape == (envs, *kind(3).shape) and spec.expand(envs, *kind(3).shape).is_in(
            state["action"]
        )


def test_fractions_and_their_cosines_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    actor = QuantileQActor(network, spec=Categorical(3))
    loss, observation = IQNLoss(actor), torch.randn(256, 4)
    exact = network(observation, fractions := torch.rand(256, 8))
    with torch.autocast("cpu", torch.bfloat16):
        drawn = loss.head.fractions(network.features(observation), 8)
        found = network(observation, fractions)
    assert drawn.dtype == torch.float32
    error = (found - exact).square().mean().sqrt()
    assert error < 0.02 * exact.std(), "cosines of bfloat16 fractions are wrong by .1"
