"""Critics of several tasks stacked into one."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from torchrl_reg.modules import AveragedCritics


class Shifted(nn.Module):
    """The sum of observation and action, plus a constant."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.shift * observation + action


def test_the_mean_over_tasks_of_the_smallest_of_each() -> None:
    tasks = [
        [ValueOperator(Shifted(s), in_keys=["observation", "action"]) for s in each] for each in ((1.0, -2.0), (5.0,))
    ]
    data = TensorDict({"observation": torch.tensor([[1.0], [-1.0]]), "action": torch.tensor([[0.5], [0.0]])}, [2])
    # Of the first task min(1.5, -1.5) and min(-1, 2), of the second 5.5 and -5.
    found = AveragedCritics(tasks)(data.clone())
    assert found["state_action_value"].tolist() == [[2.0], [-3.0]]
    assert set(found.keys()) == {"observation", "action", "state_action_value"}
