"""C51 against TorchRL's (double, one step, evenly spaced grid, float32), and the mass that leaves the grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import DistributionalQValueActor
from torchrl.objectives import DistributionalDQNLoss

from torchrl_reg.modules import CategoricalQActor
from torchrl_reg.objectives import CategoricalDQNLoss, HardTargetUpdate

ATOMS, ACTIONS, GAMMA = 11, 3, 0.9


class _Net(nn.Module):
    """``[*B, 4]`` to ``[*B, ATOMS, ACTIONS]`` for TorchRL, or flattened for ours."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.flat = nn.Linear(4, ATOMS * ACTIONS), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        return out if self.flat else out.unflatten(-1, (ATOMS, ACTIONS))


def test_c51_is_torchrls_distributional_loss(batch: Any) -> None:
    spec, support = Categorical(ACTIONS), torch.linspace(-3.0, 3.0, ATOMS)
    stock = DistributionalQValueActor(_Net(flat=False), support=support, spec=spec)
    theirs = DistributionalDQNLoss(stock, gamma=GAMMA, reduction="none")
    actor = CategoricalQActor(_Net(flat=True), num_atoms=ATOMS, value_min=-3.0, value_max=3.0, spec=spec)
    ours = CategoricalDQNLoss(actor, double_dqn=True, reduction="none").make_value_estimator(gamma=GAMMA)
    for loss in (theirs, ours):
        HardTargetUpdate(loss, period_updates=1)
        # The target network is another one than the online network.
        torch.manual_seed(7)
        for tensor in sorted(
            (t for t in loss.target_value_network_params.values(True, True) if t.shape[:1] == (ATOMS * ACTIONS,)),
            key=lambda t: t.ndim,
        ):
            tensor.data.add_(torch.randn_like(tensor))
    data = batch(30)
    data["next", "reward"] *= 2  # some targets leave the grid
    other = data.clone()
    expected, got = theirs(data)["loss"], ours(other)["loss"]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other["td_error"], data["td_error"], rtol=1e-5, atol=1e-5)
    expected.mean().backward()
    got.mean().backward()
    gradients = [[p.grad for p in loss.parameters() if p.grad is not None] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("diagnostics", [True, False])
@pytest.mark.parametrize("reward", [float("inf"), -float("inf")])
def test_an_infinite_reward_is_not_clipped_to_the_grid(batch: Any, reward: float, diagnostics: bool) -> None:
    how: dict[str, Any] = {"value_min": -3.0, "value_max": 3.0, "spec": Categorical(ACTIONS)}
    actor = CategoricalQActor(nn.Linear(4, ATOMS * ACTIONS), num_atoms=ATOMS, **how)
    loss, data = CategoricalDQNLoss(actor, delay_value=False, reduction="none", diagnostics=diagnostics), batch(3)
    loss.data_checks = "never"  # as after the first batch
    expected = loss(data)["loss"]
    data["next", "reward"][1] = reward
    got = loss(data)["loss"]
    assert got.isnan().tolist() == [False, True, False] and data["td_error"][1].isnan()
    torch.testing.assert_close(got[::2], expected[::2], rtol=0, atol=0)


def test_returns_at_the_ends_of_the_grid_are_not_clipped(batch: Any) -> None:
    """A reward of .7 for ever is worth .7 / (1 - gamma), in float32 a little more."""
    gamma, end = 0.97, 0.7 / (1 - 0.97)
    net = nn.Linear(4, ATOMS * ACTIONS)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    actor = CategoricalQActor(net, num_atoms=ATOMS, value_min=-end, value_max=end, spec=Categorical(ACTIONS))
    loss, data = CategoricalDQNLoss(actor, delay_value=False).make_value_estimator(gamma=gamma), batch(9)
    data["next", "reward"] = torch.tensor([0.7, -0.7, 0.0])[torch.arange(9) % 3].unsqueeze(-1)
    data["next", "terminated"].zero_()
    assert loss(data)["clipped_mass"] == 0
    data["next", "reward"] *= 3
    assert loss(data)["clipped_mass"] == pytest.approx(2 / 3 / ATOMS)
