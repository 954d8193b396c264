"""What the recipes for continuous actions share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.training import PolicyLearner


@pytest.mark.parametrize(("sequences", "expected"), [(False, [0, 3, 1, 4, 2, 5]), (True, [[0, 1, 2], [3, 4, 5]])])
def test_rows_are_stored_in_order_of_time_or_as_sequences(sequences: bool, expected: list) -> None:
    stored, batch = [], TensorDict({"action": torch.arange(6).reshape(2, 3), "unread": torch.ones(2, 3)}, [2, 3])
    loss, replay = SimpleNamespace(in_keys=["action"]), SimpleNamespace(extend=stored.append)
    PolicyLearner.store(SimpleNamespace(loss=loss, replay=replay, sequences=sequences), batch)
    assert stored[0]["action"].tolist() == expected and list(stored[0].keys()) == ["action"]
