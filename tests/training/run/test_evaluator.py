"""The evaluated policy in the run folder."""

from __future__ import annotations

from types import SimpleNamespace

from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_reg.training import RunSettings
from torchrl_reg.training.run.evaluator import PolicyFile


def test_a_policy_that_could_not_be_loaded_is_told_once(tmp_path) -> None:
    said: list[str] = []
    file = PolicyFile(tmp_path, SimpleNamespace(run=RunSettings()))
    own = TensorDictModule(nn.Linear(4, 2), ["observation"], ["action"])
    for frames in (100, 200):
        file.write({"greedy": own}, {"event": "eval", "frames": frames}, said.append)
    assert len(said) == 1 and said[0].startswith("policy not saved: no description of ")
    assert not list(tmp_path.iterdir())
