"""Networks bound to parameters: swapped ones (functional calls, ensembles by vmap) are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

# PyTorch has no batching rule for the gradient of unfold (the windows of PCL): slower, and right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

Leaves = dict[tuple[str, ...], Tensor]


def leaves(loss: Any) -> tuple[Leaves, Leaves]:
    """Trainable tensors of ``loss``, and all others (targets, coefficients, bins), each a copy."""
    tensors = dict(TensorDict.from_module(loss).items(True, True))
    found: tuple[Leaves, Leaves] = {}, {}
    for key, tensor in tensors.items():
        found[not tensor.requires_grad][key] = tensor.detach().clone()
    return found


def value_with(loss: Any, data: Any, trainable: Leaves, others: Leaves) -> Tensor:
    torch.manual_seed(3)
    with TensorDict({**trainable, **others}).to_module(loss):
        return loss(data.copy())["loss"]


def values_and_gradients(loss: Any, other: Any, data: Any) -> tuple[Tensor, Tensor]:
    """``loss`` vmapped over its own parameters and those of ``other``: values ``[2]``, gradients ``[2, P]``."""
    sets = [leaves(loss), leaves(other)]
    trainable, others = ({k: torch.stack([s[i][k] for s in sets]) for k in sets[0][i]} for i in range(2))
    function = torch.func.grad_and_value(lambda t, o: value_with(loss, data, t, o))
    gradients, values = torch.vmap(function, randomness="same")(trainable, others)
    return values, torch.cat([gradients[k].reshape(2, -1) for k in trainable], -1)


def value_and_gradient(loss: Any, data: Any) -> tuple[Tensor, Tensor]:
    """The same for the loss itself."""
    torch.manual_seed(3)
    value = loss(data.copy())["loss"]
    own = [tensor for _, tensor in TensorDict.from_module(loss).items(True, True) if tensor.requires_grad]
    gradients = torch.autograd.grad(value, own, materialize_grads=True)
    return value.detach(), torch.cat([g.flatten() for g in gradients])


def check_vmap(loss: Any, other: Any, data: Any) -> None:
    """``torch.vmap`` over the parameters of two losses gives the values and gradients of each."""
    values, gradients = values_and_gradients(loss, other, data)
    assert (values[0] - values[1]).abs() > 1e-4
    for i, each in enumerate((loss, other)):
        torch.testing.assert_close((values[i], gradients[i]), value_and_gradient(each, data))


def check_to_module(loss: Any, other: Any, data: Any) -> None:
    """``params.to_module(loss)`` counts within its context, and not after it."""
    before, _ = value_and_gradient(loss, data)
    bound = {name: pair[0] for name, pair in loss._bound_networks.items()}
    swapped = value_with(loss, data, *leaves(other)).detach()
    torch.testing.assert_close(swapped, value_and_gradient(other, data)[0])
    assert (swapped - before).abs() > 1e-4
    torch.testing.assert_close(value_and_gradient(loss, data)[0], before)
    # Back on the fast path: the networks that hold the loss's own tensors.
    assert all(loss._bound(data, name)[0] is network for name, network in bound.items())


def check_assignment(loss: Any, other: Any, data: Any) -> None:
    """Assigned parameters count, online and target each."""
    expected, _ = value_and_gradient(other, data)
    for name in loss._network_names:
        for key in (f"{name}_params", f"target_{name}_params"):
            if key in loss._modules:
                setattr(loss, key, other._modules[key])
    for name, buffer in loss.named_buffers(recurse=False):
        buffer.copy_(getattr(other, name))
    torch.testing.assert_close(value_and_gradient(loss, data)[0], expected)


@pytest.mark.parametrize("check", [check_vmap, check_to_module, check_assignment], ids=lambda f: f.__name__[6:])
def test_swapped_parameters_count(any_case: Any, check: Any) -> None:
    if any_case.weighted != "loss":
        pytest.skip("the actor reads critics that are copies")
    check(any_case.loss(), any_case.loss(seed=9), any_case.batch(9))


def test_without_a_target_network(cases: Any, batch: Any) -> None:
    actors = [cases["m_dqn"].actor(seed=seed) for seed in (0, 9)]
    losses = [cases["m_dqn"].cls(actor, delay_value=False, **cases["m_dqn"].kwargs) for actor in actors]
    check_vmap(*losses, batch(9))
    check_to_module(*losses, batch(9))


def test_the_users_network_is_left_alone(cases: Any, batch: Any) -> None:
    actor = cases["m_dqn"].actor()
    loss, other = cases["m_dqn"].loss(actor), cases["m_dqn"].loss(cases["m_dqn"].actor(seed=9))
    held = list(actor.parameters())
    check_to_module(loss, other, batch(9))
    check_assignment(loss, other, batch(9))
    assert all(p is q for p, q in zip(held, actor.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kwargs", "other"),
    [
        ("m_dqn", {}, {"tau": 0.9, "alpha": 0.2, "clip_min": -1.0}),
        ("m_iq", {"alpha": 0.0}, {}),  # a weight that was off
        ("trust_pcl", {"lam": 0.0}, {}),
    ],
)
def test_a_swapped_coefficient_counts(all_cases: Any, name: str, kwargs: Any, other: Any) -> None:
    case = all_cases[name]
    check_to_module(case.loss(**kwargs), case.loss(**other), case.batch(9))


@pytest.mark.parametrize(("name", "kwargs"), [("m_iq", {"target_entropy": 1.0}), ("trust_pcl", {"max_kl": 0.01})])
def test_learnt_coefficients(all_cases: Any, name: str, kwargs: Any) -> None:
    check_vmap(all_cases[name].loss(**kwargs), all_cases[name].loss(seed=5, **kwargs), all_cases[name].batch(9))


@pytest.mark.parametrize("name", ["soft_dqn", "m_iqn"])
def test_without_a_target_network_new_memory_of_the_parameters_is_seen(cases: Any, batch: Any, name: str) -> None:
    """``vector_to_parameters`` assigns to ``p.data``."""
    data, found = batch(5), []
    for how in ("in place", "new memory"):
        case = cases[name]
        loss = case.cls(case.actor(), delay_value=False, **case.kwargs).make_value_estimator(gamma=0.9)
        loss(data.copy())
        if how == "in place":
            with torch.no_grad():
                for parameter in loss.parameters():
                    parameter.mul_(1.7)
        else:
            vector = torch.nn.utils.parameters_to_vector(loss.parameters()).detach() * 1.7
            torch.nn.utils.vector_to_parameters(vector, loss.parameters())
        torch.manual_seed(0)
        found.append(loss(data.copy())["loss"])
    torch.testing.assert_close(*found)
