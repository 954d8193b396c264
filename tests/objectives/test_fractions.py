"""Which fractions the quantile losses draw, and what the network makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch


def drawn(loss: Any, data: Any) -> list[torch.Tensor]:
    """The fractions of one forward pass, in order."""
    seen: list[torch.Tensor] = []
    original = loss.head.fractions
    loss.head.fractions = lambda features, count: seen.append(original(features, count)) or seen[-1]
    loss(data)
    return seen


def test_fractions_are_uniform_and_fresh(cases: Any, batch: Any) -> None:
    torch.manual_seed(0)
    loss = cases["m_iqn"].loss(num_quantiles=64, num_target_quantiles=64, num_policy_quantiles=32)
    sets = drawn(loss, batch(50))
    assert [tuple(s.shape) for s in sets] == [(50, 64), (50, 32), (50, 96)]
    for fractions in sets:
        assert abs(fractions.mean() - 0.5) < 0.02 and abs(fractions.var() - 1 / 12) < 0.01
        assert fractions.min() >= 0 and fractions.max() <= 1
        assert not torch.equal(fractions[0], fractions[1])
    assert not torch.equal(sets[1], sets[2][:, 64:])
    assert not torch.equal(sets[0], drawn(loss, batch(50))[0])


def test_reused_and_shared_fractions(cases: Any, batch: Any) -> None:
    counts = {"num_quantiles": 5, "num_target_quantiles": 7, "num_policy_quantiles": 3}
    assert [s.shape[-1] for s in drawn(cases["m_iqn_reuse"].loss(**counts), batch(6))] == [5, 3, 7]
    assert [tuple(s.shape) for s in drawn(cases["m_iqn_shared"].loss(**counts), batch(6))] == [(5,), (3,), (10,)]


def test_sharing_fractions_changes_nothing_but_the_draw(cases: Any, batch: Any) -> None:
    data, loss, shared = batch(6), cases["m_iqn"].loss(), cases["m_iqn_shared"].loss()
    fixed = {n: (torch.arange(n) + 0.3) / n for n in (5, 3, 10)}
    loss.head.fractions = lambda features, count: fixed[count].expand(*features.shape[:-1], count)
    shared.head.fractions = lambda features, count: fixed[count]
    torch.testing.assert_close(shared(data)["loss"], loss(data)["loss"])


def test_embedding_is_a_cosine_basis_from_one(cases: Any) -> None:
    net = cases["iqn"].actor().quantile_network
    observation, fractions = torch.randn(2, 4), torch.rand(2, 5)
    cosines = torch.stack([torch.cos(math.pi * i * fractions) for i in range(1, 7)], -1)
    embedded = torch.relu(cosines @ net.embedding.weight.T + net.embedding.bias)
    expected = net.head(net.torso(observation).unsqueeze(1) * embedded)
    torch.testing.assert_close(net(observation, fractions), expected)
