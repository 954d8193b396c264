"""Which fractions the quantile losses draw."""

from __future__ import annotations

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
    assert [s.shape[-1] for s in drawn(cases["m_iqn_reuse"].loss(), batch(6))] == [5, 3, 7]
    assert [tuple(s.shape) for s in drawn(cases["m_iqn_shared"].loss(), batch(6))] == [(5,), (3,), (10,)]


def test_sharing_fractions_changes_nothing_but_the_draw(cases: Any, batch: Any) -> None:
    loss, shared = cases["m_iqn"].loss(), cases["m_iqn_shared"].loss()
    shared.head.fractions = lambda features, count: (torch.arange(count) + 0.3) / count
    loss.head.fractions = lambda features, count: shared.head.fractions(features, count).expand(len(features), count)
    torch.testing.assert_close(shared(batch(6))["loss"], loss(batch(6))["loss"])
