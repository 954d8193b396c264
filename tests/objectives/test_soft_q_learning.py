"""Soft Q-learning against quadrature, and what its samplers converge to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from critic_cases import CASES
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from torchrl_reg.functional import soft_value, svgd_bandwidth, svgd_direction
from torchrl_reg.functional.sampling import lattice_points
from torchrl_reg.modules import FlowActor, StochasticSamplerActor
from torchrl_reg.objectives import SoftQLearningLoss
from torchrl_reg.tabular import gauss_legendre

MODES = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])


class Critic(nn.Module):
    """A function of the action, times a parameter that is 1."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.scale, self.function = nn.Parameter(torch.tensor(1.0)), function

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.scale * self.function(action) + 0 * observation


def four_modes(action: Tensor) -> Tensor:
    """``exp(Q)`` is a mixture of four normals, 4 standard deviations apart."""
    distances = (action.unsqueeze(-2) - MODES).square().sum(-1)
    return (-distances / (2 * 0.25**2)).logsumexp(-1, keepdim=True)


def sampled(critic: Any, dims: int, steps: int, batch: int, *, seed: int = 0, cells: int = 64, **form: str) -> Tensor:
    """100 000 actions of a sampler trained on a critic that stays."""
    torch.manual_seed(seed)
    box: Any = {"low": [-1.0] * dims, "high": [1.0] * dims, "num_cells": (cells, cells)}
    actor = StochasticSamplerActor(nn.Identity(), 1, **box)
    operator = ValueOperator(Critic(critic), in_keys=["observation", "action"])
    loss = SoftQLearningLoss(actor, operator, num_particles=64, diagnostics=False, **form)  # type: ignore[arg-type]
    states = TensorDict({"observation": torch.zeros(batch, 1)}, [batch])
    optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows, _ = loss._stein_loss(states)
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
    with torch.no_grad():
        return actor.squashed(actor.particles(states[:1], 100_000)[0])[0]


@pytest.mark.parametrize("form", ["exact", "haarnoja2017"])
@pytest.mark.parametrize(
    ("steps", "batch", "tolerance"), [(250, 2, 0.02), pytest.param(3000, 16, 0.01, marks=pytest.mark.slow)]
)
def test_the_stein_sampler_of_a_linear_q(form: str, steps: int, batch: int, tolerance: float) -> None:
    """The released form, a corrected density in uncorrected space, ends elsewhere: exp(3 a) (1 - a^2)."""
    rule = gauss_legendre(60)
    a = rule.nodes.squeeze(-1)
    density = rule.weights * (3 * a).exp() * (1 if form == "exact" else 1 - a.square())
    action = sampled(lambda action: 3 * action, 1, steps, batch, form=form)
    assert abs(action.mean() - (density @ a) / density.sum()) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_mode_gets_its_mass(seed: int) -> None:
    """Within 5% of it, where the modes touch, and the density lies as it should."""
    action, cells = sampled(four_modes, 2, 1200, 16, seed=seed, cells=128), 8
    middles = (torch.arange(20 * cells) + 0.5) / (10 * cells) - 1
    density = four_modes(torch.cartesian_prod(middles, middles)).squeeze(-1).softmax(0)
    expected = density.reshape(cells, 20, cells, 20).sum((1, 3)).flatten()
    index = ((action + 1) / 2 * cells).long().clamp(max=cells - 1)
    got = (index[:, 0] * cells + index[:, 1]).bincount(minlength=cells**2) / len(action)
    shares = torch.cdist(action, MODES).argmin(-1).bincount(minlength=4) / len(action)
    assert (shares - 0.25).abs().max() < 0.05 * 0.25
    assert (got - expected).abs().sum() / 2 < 0.13


@pytest.mark.parametrize("proposal", ["lattice", "uniform"])
def test_the_soft_value_of_a_box_by_hand(proposal: str) -> None:
    """All K actions in one call of the target critics; D ln 2 for the volume of the box, independent of its bounds."""
    loss, data = CASES["soft_q_twin"].loss(num_value_samples=7, proposal=proposal), CASES["soft_q_twin"].batch(5)
    torch.manual_seed(3)
    value, ess = loss._soft_value(data, data["next"])
    torch.manual_seed(3)
    uniform = torch.rand(5, 1 if proposal == "lattice" else 7, 2)
    if proposal == "lattice":
        uniform = (lattice_points(7, 2).float() + uniform) % 1
    action = torch.tensor([-1.0, -2.0]) + torch.tensor([2.0, 4.0]) * uniform
    with loss.target_qvalue_network_params.to_module(loss.qvalue_network):
        states = data["next", "observation"].unsqueeze(1).expand(5, 7, 4)
        q = torch.cat([critic.module(states, action) for critic in loss.qvalue_network.critics], -1).amin(-1)
    expected = soft_value(q, 0.5) - 0.5 * math.log(7) + 0.5 * 2 * math.log(2)
    torch.testing.assert_close(value, expected.detach())
    assert ((ess >= 1) & (ess <= 7)).all()


def test_the_flow_as_proposal_knows_its_density() -> None:
    torch.manual_seed(0)
    actor = FlowActor(nn.Linear(3, 8), 8, low=[-1.0, 0.0], high=[1.0, 4.0], num_cells=8)
    nn.init.normal_(actor.weight_out, std=0.3)
    states = TensorDict({"observation": torch.randn(6, 3)}, [6])
    u, log_p = actor.particles(states, 50)
    assert u.shape == (6, 50, 2) and log_p.shape == (6, 50)
    # The density per unit of [-1, 1]^2 is that of actions in their own units, times the half-widths.
    expected = actor.get_dist(states).log_prob(actor.squashed(u).movedim(1, 0)).movedim(0, 1) + math.log(1.0 * 2.0)
    inner = (u.tanh().abs() < 0.999).all(-1)  # log_prob takes atanh back, in float32
    assert inner.float().mean() > 0.9
    torch.testing.assert_close(log_p[inner], expected[inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["soft_q", "soft_q_twin"])
def test_the_gradient_is_the_direction_through_the_sampler(name: str) -> None:
    """Minus the mean over moving particles of direction times du/dphi; the fixed half gets none; the smaller critic."""
    loss, data = CASES[name].loss(), CASES[name].batch(4)
    torch.manual_seed(3)
    still, moving = (loss.actor_network.particles(data, 3)[0] for _ in range(2))
    torch.manual_seed(3)
    rows, spread = loss._stein_loss(data)
    fixed = still.detach().requires_grad_()
    states, action = data["observation"].unsqueeze(1).expand(4, 3, 4), loss.actor_network.squashed(fixed)
    q = torch.cat([critic.module(states, action) for critic in loss.qvalue_network.critics], -1).amin(-1)
    log_p = q / 0.5 + (1 - fixed.tanh().square()).log().sum(-1)
    (score,) = torch.autograd.grad(log_p.sum(), fixed)
    direction = svgd_direction(fixed, score, moving, svgd_bandwidth(moving)).detach()
    params = list(loss.actor_network.parameters())
    expected = torch.autograd.grad((direction * moving).sum() / 3 / 4, params)
    torch.testing.assert_close(torch.autograd.grad(-rows.mean(), params), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(spread, torch.cat((still, moving), 1).tanh().std(1).mean(-1).detach())
