from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchrl_reg.training.loop.optimizers import FlatRAdam, make_optimizer

_RATE, _EPS = 0.1, 0.01


def _stepped(name: str, gradients: list[float], **options: float) -> list[float]:
    """A parameter that starts at 0, after each step along ``gradients``."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer(name, [parameter], learning_rate=_RATE, eps=_EPS, **options)
    seen = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(parameter.item())
    return seen


def test_adam_and_radam_begin_as_their_papers_say():
    # Bias-corrected moments of the first step are g and g^2; RAdam takes momentum alone while its rho is below 5.
    assert _stepped("adam", [2.0]) == pytest.approx([-_RATE * 2 / (2 + _EPS)])
    assert _stepped("radam", [2.0, 2.0]) == pytest.approx([-_RATE * 2, -2 * _RATE * 2])


def test_rmsprop_is_centered():
    mean, square = 0.25 * 2.0, 0.25 * 4.0
    assert _stepped("rmsprop", [2.0], decay=0.75) == pytest.approx([-_RATE * 2 / ((square - mean**2) ** 0.5 + _EPS)])


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="name must be one of adam, radam, rmsprop, got 'sgd'"):
        _stepped("sgd", [])


def _networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    return network, copy.deepcopy(network)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


def test_radam_is_torchs_and_resumes_to_the_bit():
    ours, theirs = _networks()
    optimizer, reference = FlatRAdam(ours.parameters(), lr=1e-2), torch.optim.RAdam(theirs.parameters(), lr=1e-2)
    for seed in range(20):  # the first five without rectification
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = 1e-2 * (1 - seed / 20)
        _step(ours, optimizer, seed)
        _step(theirs, reference, seed)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)
        found, expected = optimizer.state[mine], reference.state[other]
        assert found["step"] == expected["step"] == 20
        torch.testing.assert_close(found["exp_avg_sq"], expected["exp_avg_sq"], rtol=1e-13, atol=1e-16)

    again = copy.deepcopy(ours)
    resumed = FlatRAdam(again.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (30, 31):
        _step(ours, optimizer, seed)
        _step(again, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
