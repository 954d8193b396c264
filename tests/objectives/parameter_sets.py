"""Calls of a loss with other parameters than its own, for the tests of both families of losses."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

Leaves = dict[tuple[str, ...], Tensor]


def leaves(loss: Any) -> tuple[Leaves, Leaves]:
    """Trainable tensors of ``loss``, and all others (targets, coefficients, bins), each a copy."""
    tensors = dict(TensorDict.from_module(loss).items(True, True))
    # A shared tensor has several names; without a target network its parameters serve as one.
    own = {key for key, tensor in tensors.items() if tensor.requires_grad}
    return (
        {key: tensors[key].detach().clone() for key in tensors if key in own},
        {key: tensors[key].detach().clone() for key in tensors if key not in own},
    )


def value_with(loss: Any, data: Any, trainable: Leaves, others: Leaves, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    with TensorDict({**trainable, **others}).to_module(loss):
        return loss(data.copy())["loss"]


def values_and_gradients(loss: Any, other: Any, data: Any) -> tuple[Tensor, Tensor]:
    """``loss`` vmapped over its own parameters and those of ``other``: values ``[2]``, gradients ``[2, P]``."""
    sets = [leaves(loss), leaves(other)]
    trainable, others = ({k: torch.stack([s[i][k] for s in sets]) for k in sets[0][i]} for i in range(2))
    function = torch.func.grad_and_value(lambda t, o: value_with(loss, data, t, o))
    gradients, values = torch.vmap(function, randomness="same")(trainable, others)
    return values, torch.cat([gradients[k].reshape(2, -1) for k in trainable], -1)


def value_and_gradient(loss: Any, data: Any, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The same for the loss as it is."""
    names = [k for k, t in TensorDict.from_module(loss).items(True, True) if t.requires_grad]
    torch.manual_seed(seed)
    value = loss(data.copy())["loss"]
    tensors = dict(TensorDict.from_module(loss).items(True, True))
    gradients = torch.autograd.grad(value, [tensors[k] for k in names], materialize_grads=True)
    return value.detach(), torch.cat([g.flatten() for g in gradients])


def check_vmap(loss: Any, other: Any, data: Any) -> None:
    """``torch.vmap`` over the parameters of two losses gives the values and gradients of each."""
    values, gradients = values_and_gradients(loss, other, data)
    assert (values[0] - values[1]).abs() > 1e-4
    for i, each in enumerate((loss, other)):
        value, gradient = value_and_gradient(each, data)
        torch.testing.assert_close(values[i], value)
        torch.testing.assert_close(gradients[i], gradient)


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
