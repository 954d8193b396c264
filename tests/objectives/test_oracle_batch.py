"""Every loss against its equation, written out in plain PyTorch row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

GAMMA, TAU, ALPHA, CLIP, KAPPA = 0.9, 0.5, 0.5, -0.3, 0.5
RHO, BETA = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 2.0


def q_rows(loss: Any, params: Any, observation: Tensor) -> Tensor:
    with params.to_module(loss.value_network):
        return loss.value_network.module[0].module(observation)


def log_softmax(q: Tensor) -> Tensor:
    return q / TAU - torch.logsumexp(q / TAU, -1, keepdim=True)


def bonus(q: Tensor, action: int) -> Tensor:
    return ALPHA * torch.clamp(TAU * log_softmax(q)[action], CLIP, 0.0)


def expected_target(name: str, loss: Any, row: Any) -> Tensor:
    """The scalar target of one transition."""
    q = q_rows(loss, loss.target_value_network_params, row["observation"])
    next_q = q_rows(loss, loss.target_value_network_params, row["next", "observation"])
    action = int(row["action"])
    terminated = bool(row["next", "terminated"])
    pi = log_softmax(next_q).exp()
    soft = (pi * (next_q - TAU * log_softmax(next_q))).sum()
    hard = next_q.max()
    gap, next_gap = q.max() - q[action], next_q.max() - next_q[action]
    value, extra = {
        "soft_dqn": (soft, 0.0),
        "m_dqn": (soft, bonus(q, action)),
        "mirl": ((RHO * (BETA * next_q).exp()).sum().log() / BETA, 0.0),
        "al": (hard, -ALPHA * gap),
        "pal": (hard, -ALPHA * (gap if terminated else min(gap, next_gap))),
    }[name]
    return row["next", "reward"].squeeze() + extra + (0.0 if terminated else GAMMA * value)


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn", "mirl", "al", "pal"])
@pytest.mark.parametrize("size", [1, 17])
def test_loss_is_the_equation(cases: Any, batch: Any, name: str, size: int) -> None:
    loss = cases[name].loss().double()
    data = batch(size, dtype=torch.float64)
    targets = torch.stack([expected_target(name, loss, row) for row in data.unbind(0)]).detach()
    q = q_rows(loss, loss.value_network_params, data["observation"])
    prediction = q.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    expected = torch.nn.functional.smooth_l1_loss(prediction, targets)
    gradients = torch.autograd.grad(expected, list(loss.parameters()))

    out = loss(data)
    torch.testing.assert_close(out["loss"], expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], list(loss.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(data["td_error"].squeeze(-1), (prediction - targets).square(), rtol=0, atol=1e-12)
    assert (prediction - targets).abs().max() > 1e-3


def fixed_fractions(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.3) / count


def expected_quantile_loss(name: str, loss: Any, row: Any) -> Tensor:
    """The loss of one transition, with the pairs of quantiles in two Python loops."""
    action, terminated = int(row["action"]), bool(row["next", "terminated"])
    reward = row["next", "reward"].squeeze()
    head = loss.head
    n, m, k = head.num_quantiles, head.num_target_quantiles, head.num_policy_quantiles

    def z(params: Any, key: Any, fractions: Tensor) -> Tensor:
        with params.to_module(loss.value_network):
            return loss.value_network.quantile_network(row[key], fractions)

    target, following = loss.target_value_network_params, ("next", "observation")
    if head.reuse_quantiles:
        next_z = z(target, following, fixed_fractions(m))
        next_q = next_z.mean(0)
    else:
        both = z(target, following, fixed_fractions(m + k))
        next_z, next_q = both[:m], both[m:].mean(0)
    if name.startswith("m_iqn"):
        log_pi = log_softmax(next_q)
        backup = (log_pi.exp() * (next_z - TAU * log_pi)).sum(-1)
        extra = bonus(z(target, "observation", fixed_fractions(k)).mean(0), action)
    elif name.startswith("mi_iqn"):
        pi = RHO * (BETA * next_q).exp()
        pi = pi / pi.sum()
        backup, extra = (pi * (next_z - (pi / RHO).log() / BETA)).sum(-1), 0.0
    else:
        if loss.double_dqn:
            next_q = z(loss.value_network_params, following, fixed_fractions(k)).mean(0)
        backup, extra = next_z[:, next_q.argmax()], 0.0
    targets = (reward + extra + (0.0 if terminated else GAMMA) * backup).detach()
    sigma = fixed_fractions(n)
    online = z(loss.value_network_params, "observation", sigma)[:, action]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            delta = targets[j] - online[i]
            huber = 0.5 * delta**2 if delta.abs() <= KAPPA else KAPPA * (delta.abs() - 0.5 * KAPPA)
            total = total + (sigma[i] - float(delta < 0)).abs() * huber / KAPPA / m
    return total


@pytest.mark.parametrize(
    "name", ["iqn", "iqn_double", "iqn_reuse", "m_iqn", "m_iqn_reuse", "m_iqn_shared", "mi_iqn", "mi_iqn_reuse"]
)
@pytest.mark.parametrize("size", [1, 9])
def test_quantile_loss_is_the_equation(cases: Any, batch: Any, name: str, size: int) -> None:
    loss = cases[name].loss().double()
    loss.head.fractions = lambda features, count: fixed_fractions(count).expand(*features.shape[:-1], count)
    data = batch(size, dtype=torch.float64)
    rows = torch.stack([expected_quantile_loss(name, loss, row) for row in data.unbind(0)])
    gradients = torch.autograd.grad(rows.mean(), list(loss.parameters()))

    out = loss(data)
    torch.testing.assert_close(out["loss"], rows.mean(), rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], list(loss.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(data["td_error"].squeeze(-1), rows.detach(), rtol=0, atol=1e-12)


def test_munchausen_diagnostics_are_those_of_the_batch(cases: Any, batch: Any) -> None:
    loss = cases["m_dqn"].loss().double()
    data = batch(40, dtype=torch.float64)
    out = loss(data)
    q = q_rows(loss, loss.value_network_params, data["observation"])
    q_target = q_rows(loss, loss.target_value_network_params, data["observation"])
    log_pi, log_target = log_softmax(q), log_softmax(q_target)
    chosen = TAU * log_target.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    top = q.topk(2).values
    expected = {
        "entropy": -(log_pi.exp() * log_pi).sum(-1).mean(),
        "kl": (log_pi.exp() * (log_pi - log_target)).sum(-1).mean(),
        "action_gap": (top[:, 0] - top[:, 1]).mean(),
        "soft_gap": (TAU * torch.logsumexp(q / TAU, -1) - q.amax(-1)).mean(),
        "bonus": ALPHA * chosen.clamp(CLIP, 0.0).mean(),
        "bonus_clipped": (chosen < CLIP).double().mean(),
        "td_error": data["td_error"].sqrt().mean(),
        "tau": torch.tensor(TAU, dtype=torch.float64),
    }
    assert set(expected) | {"loss"} == set(out.keys())
    assert 0.1 < expected["bonus_clipped"] < 0.9
    for name, value in expected.items():
        torch.testing.assert_close(out[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
        assert not out[name].requires_grad
