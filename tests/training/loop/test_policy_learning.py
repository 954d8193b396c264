"""What the recipes for continuous actions share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_reg.training import PolicyLearner


@pytest.mark.parametrize(("sequences", "expected"), [(False, [0, 3, 1, 4, 2, 5]), (True, [[0, 1, 2], [3, 4, 5]])])
def test_rows_are_stored_in_order_of_time_or_as_sequences(sequences: bool, expected: list) -> None:
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(6), batch_size=1)
    batch = TensorDict({"action": torch.arange(6).reshape(2, 3), "unread": torch.ones(2, 3)}, [2, 3])
    learner = SimpleNamespace(loss=SimpleNamespace(in_keys=["action"]), replay=replay, sequences=sequences)
    PolicyLearner.store(learner, batch)
    assert replay[:]["action"].tolist() == expected and "unread" not in list(replay[:].keys())
