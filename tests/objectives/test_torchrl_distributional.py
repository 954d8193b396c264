"""C51 on TorchRL's own ground: double, one step, an evenly spaced grid, float32."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import DistributionalQValueActor
from torchrl.objectives import DistributionalDQNLoss

from torchrl_reg.modules import CategoricalQActor
from torchrl_reg.objectives import CategoricalDQNLoss, HardTargetUpdate, MunchausenCategoricalLoss

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


@pytest.mark.parametrize("munchausen", [False, True])
def test_the_mass_that_leaves_the_grid_is_reported_and_nothing_of_masked_rows(munchausen: bool) -> None:
    torch.manual_seed(3)
    actor = CategoricalQActor(
        _Net(0, flat=True), num_atoms=ATOMS, value_min=-3.0, value_max=3.0, spec=Categorical(ACTIONS)
    )
    kind = partial(MunchausenCategoricalLoss, tau=0.5, alpha=0.5, clip_min=-0.3) if munchausen else CategoricalDQNLoss
    loss = kind(actor).make_value_estimator(gamma=GAMMA)
    HardTargetUpdate(loss, period_updates=1)
    data = _batch(one_hot=False)
    data["collector", "mask"] = (torch.arange(9) != 2).unsqueeze(-1)
    data["next", "reward"][2] = torch.nan
    # The same masses, atom by atom.
    z, z_next = (torch.linspace(-3.0, 3.0, ATOMS), _Net(0, flat=False)(data["next", "observation"]).softmax(-2))
    q, q_next = _Net(0, flat=False)(data["observation"]).softmax(-2).transpose(-1, -2) @ z, z_next.transpose(-1, -2) @ z
    shares = []
    for row in [row for row in range(9) if row != 2]:
        bonus, cost = 0.0, torch.zeros(ACTIONS)
        pi = nn.functional.one_hot(q_next[row].argmax(), ACTIONS).float()
        if munchausen:
            pi, cost = (q_next[row] / 0.5).softmax(-1), 0.5 * (q_next[row] / 0.5).log_softmax(-1)
            taken = 0.5 * (q[row] / 0.5).log_softmax(-1)[data["action"][row]]
            bonus = 0.5 * taken.clamp(-0.3, 0)
        goes_on = 0.0 if data["next", "terminated"][row] else GAMMA
        atoms = data["next", "reward"][row] + bonus + goes_on * (z[:, None] - cost)
        shares.append((pi * z_next[row] * (atoms.abs() > 3.0)).sum())
    expected = torch.stack(shares).mean()
    found = loss(data)["clipped_mass"]
    assert 0.05 < expected < 0.95 and not found.requires_grad
    torch.testing.assert_close(found, expected.detach())
    loss.diagnostics = False
    assert "clipped_mass" not in loss(data)


def test_returns_at_the_ends_of_the_grid_are_not_clipped() -> None:
    """A reward of .7 for ever is worth .7 / (1 - gamma), in float32 a little more."""
    gamma, end = 0.97, 0.7 / (1 - 0.97)
    net = nn.Linear(4, ATOMS * 2)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    actor = CategoricalQActor(net, num_atoms=ATOMS, value_min=-end, value_max=end, spec=Categorical(2))
    loss = CategoricalDQNLoss(actor, delay_value=False).make_value_estimator(gamma=gamma)
    data = _batch(one_hot=False)
    data["action"].clamp_(max=1)
    data["next", "reward"] = torch.tensor([0.7, -0.7, 0.0])[torch.arange(9) % 3].unsqueeze(-1)
    data["next", "terminated"].zero_()
    assert loss(data)["clipped_mass"] == 0
    data["next", "reward"] *= 3
    assert loss(data)["clipped_mass"] == pytest.approx(2 / 3 / ATOMS)
