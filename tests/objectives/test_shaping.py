"""Shapings inside a loss, under action masks and past the end of an episode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchrl_reg.objectives.heads.head import Prediction

INF = float("inf")


@pytest.mark.parametrize("forbidden", [-INF, torch.finfo(torch.float32).min])
def test_persistent_gap_where_the_action_is_forbidden_at_the_next_state(
    cases: Any, batch: Any, monkeypatch: pytest.MonkeyPatch, forbidden: float
) -> None:
    """The gap there is infinite, so the one at s is the smaller; at a terminal s' (row 1) there is no other one."""
    loss = cases["pal"].loss(diagnostics=True)
    data = batch(3)
    data["action"] = torch.tensor([[0], [1], [2]])
    data["next", "reward"] = torch.zeros(3, 1)
    data["next", "terminated"] = torch.tensor([[False], [True], [False]])
    q = torch.tensor([[1.0, 3.0, forbidden], [5.0, 1.0, forbidden], [forbidden, 4.0, 1.0]])
    next_q = torch.tensor([[forbidden, 2.0, 0.0], [torch.nan] * 3, [forbidden, 2.0, 1.5]])
    online, target = loss._bound(data)
    monkeypatch.setattr(target, "both", lambda *_, **__: (q, next_q))
    action = data["action"].squeeze(-1)
    values, _, _, rows = loss._target(data, Prediction(q), action, None, online, target)
    torch.testing.assert_close(rows["bonus"], torch.tensor([-1.0, -2.0, -0.25]))
    # gamma .9 times the best next value, minus half the gap
    torch.testing.assert_close(values.squeeze(-1), torch.tensor([1.8 - 1.0, -2.0, 1.8 - 0.25]))
