"""Quantile values are those of the formula, to the last bit, wherever their memory comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torchrl_reg.modules import ImplicitQuantileNetwork


def network(cls: type[ImplicitQuantileNetwork] = ImplicitQuantileNetwork) -> ImplicitQuantileNetwork:
    torch.manual_seed(0)
    return cls(nn.Linear(4, 16), num_features=16, num_actions=3, num_cosines=7, num_cells=32)


def formula(net: ImplicitQuantileNetwork, features: Tensor, fractions: Tensor) -> Tensor:
    first, _, last = net.head
    cosines = torch.cos(math.pi * torch.arange(1, 8) * fractions.unsqueeze(-1))
    return last(torch.relu(first(features.unsqueeze(-2) * torch.relu(net.embedding(cosines)))))


@pytest.mark.parametrize("count", [(8, 5), (1, 5), (5,)])  # by row, one row for all, one set for all
@pytest.mark.parametrize("gradients", [True, False])
def test_values_and_gradients_are_those_of_the_formula(count: tuple[int, ...], gradients: bool) -> None:
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
def test_vmap(gradients: bool, dims: tuple[int | None, int | None]) -> None:
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
