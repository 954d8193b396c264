"""C51 on TorchRL's own ground: double, one step, an evenly spaced grid, float32."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import DistributionalQValueActor
from torchrl.objectives import DistributionalDQNLoss

from torchrl_reg.modules import CategoricalQActor
from torchrl_reg.objectives import CategoricalDQNLoss, HardTargetUpdate

ATOMS, ACTIONS, GAMMA = 11, 3, 0.9


class _Net(nn.Module):
    """``[*B, 4]`` to ``[*B, ATOMS, ACTIONS]`` for TorchRL, or flattened for ours."""

    def __init__(self, seed: int, flat: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear, self.flat = nn.Linear(4, ATOMS * ACTIONS), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        return out if self.flat else out.unflatten(-1, (ATOMS, ACTIONS))


def _batch(one_hot: bool) -> TensorDict:
    torch.manual_seed(2)
    action = torch.randint(ACTIONS, (9,))
    ended = torch.arange(9).remainder(4).eq(0).unsqueeze(-1)
    truncated = torch.arange(9).eq(5).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(9, 4),
            "action": nn.functional.one_hot(action, ACTIONS) if one_hot else action,
            "next": {
                "observation": torch.randn(9, 4),
                "reward": 2 * torch.randn(9, 1),  # some targets leave the grid
                "done": ended | truncated,
                "terminated": ended,
            },
        },
        [9],
    )


@pytest.mark.parametrize("one_hot", [True, False])
def test_c51_is_torchrls_distributional_loss(one_hot: bool) -> None:
    spec = OneHot(ACTIONS) if one_hot else Categorical(ACTIONS)
    support = torch.linspace(-3.0, 3.0, ATOMS)
    theirs = DistributionalDQNLoss(
        DistributionalQValueActor(_Net(0, flat=False), support=support, spec=spec), gamma=GAMMA, reduction="none"
    )
    actor = CategoricalQActor(_Net(0, flat=True), num_atoms=ATOMS, value_min=-3.0, value_max=3.0, spec=spec)
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
    data, other = _batch(one_hot), _batch(one_hot)
    expected, got = theirs(data)["loss"], ours(other)["loss"]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other["td_error"], data["td_error"], rtol=1e-5, atol=1e-5)
    expected.mean().backward()
    got.mean().backward()
    of_theirs = [p.grad for p in theirs.parameters() if p.grad is not None]
    for mine, their in zip((p.grad for p in ours.parameters()), of_theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-6)
