"""Soft Q-learning against quadrature, and what its samplers converge to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from torchrl_reg.functional import soft_value, svgd_bandwidth, svgd_direction
from torchrl_reg.functional.sampling import lattice_points
from torchrl_reg.modules import FlowActor, StochasticSamplerActor
from torchrl_reg.objectives import SoftQLearningLoss
from torchrl_reg.tabular import TabularMDP, continuous_soft_q_iteration, gauss_legendre

MODES = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])


class Linear3(nn.Module):
    """``Q = 3 a``."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.slope * action.sum(-1, keepdim=True) + 0 * observation


class FourModes(nn.Module):
    """``exp(Q)`` is a mixture of four normals."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.scale, self.std = nn.Parameter(torch.tensor(1.0)), std

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        distances = (action.unsqueeze(-2) - MODES).square().sum(-1)
        return self.scale * (-distances / (2 * self.std**2)).logsumexp(-1, keepdim=True) + 0 * observation


def sampled(
    critic: nn.Module,
    dims: int,
    steps: int,
    batch: int,
    num_particles: int,
    *,
    seed: int = 0,
    num_cells: tuple[int, ...] = (64, 64),
    **kwargs: Any,
) -> Tensor:
    """100 000 actions of a sampler trained on a critic that stays."""
    torch.manual_seed(seed)
    actor = StochasticSamplerActor(nn.Identity(), 1, low=[-1.0] * dims, high=[1.0] * dims, num_cells=num_cells)
    operator = ValueOperator(critic, in_keys=["observation", "action"])
    loss = SoftQLearningLoss(actor, operator, num_particles=num_particles, diagnostics=False, **kwargs)
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


@pytest.mark.parametrize(("form", "mean"), [("exact", 1 / math.tanh(3) - 1 / 3), ("haarnoja2017", 0.49)])
def test_the_stein_sampler_of_a_linear_q(form: str, mean: float) -> None:
    """The released form, a corrected density in uncorrected space, ends elsewhere: exp(3 a) (1 - a^2)."""
    action = sampled(Linear3(), 1, 250, 2, 64, form=form)
    assert abs(action.mean() - mean) < 0.02


def test_the_law_of_the_released_form() -> None:
    rule = gauss_legendre(60)
    a = rule.nodes.squeeze(-1)
    density = rule.weights * (3 * a).exp() * (1 - a.square())
    assert abs((density @ a) / density.sum() - 0.49) < 0.003


@pytest.mark.slow
@pytest.mark.parametrize(("form", "mean"), [("exact", 0.672), ("haarnoja2017", 0.49)])
def test_the_stein_sampler_of_a_linear_q_to_one_percent(form: str, mean: float) -> None:
    assert abs(sampled(Linear3(), 1, 3000, 16, 64, form=form).mean() - mean) < 0.01


def shares(action: Tensor) -> Tensor:
    """Of the four modes ``[4]``."""
    return torch.cdist(action, MODES).argmin(-1).bincount(minlength=4) / len(action)


@pytest.mark.slow
def test_every_mode_gets_its_share() -> None:
    """Modes that hardly touch (6.7 standard deviations apart): the direction says next to nothing of their masses."""
    assert (shares(sampled(FourModes(0.15), 2, 1500, 8, 32)) - 0.25).abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_mode_gets_its_mass(seed: int) -> None:
    """Within 5% of it, where the modes touch (4 standard deviations apart), and the density lies as it should."""
    critic = FourModes(0.25)
    action = sampled(critic, 2, 1200, 16, 64, seed=seed, num_cells=(128, 128))
    cells = 8
    middles = (torch.arange(20 * cells) + 0.5) / (10 * cells) - 1
    grid = torch.cartesian_prod(middles, middles)
    density = critic(torch.zeros(1), grid).detach().squeeze(-1).softmax(0)
    expected = density.reshape(cells, 20, cells, 20).sum((1, 3)).flatten()
    index = ((action + 1) / 2 * cells).long().clamp(max=cells - 1)
    got = (index[:, 0] * cells + index[:, 1]).bincount(minlength=cells**2) / len(action)
    assert (shares(action) - 0.25).abs().max() < 0.05 * 0.25
    assert (got - expected).abs().sum() / 2 < 0.13


def test_few_particles_are_refused(cases: Any) -> None:
    for count in (0, 1, 2, 3, 5):
        with pytest.raises(ValueError, match=f"num_particles must be an even number >= 4 .*got {count}"):
            cases["soft_q"].loss(num_particles=count)


class Table(nn.Module):
    """Q of two states (one-hot) as polynomials of the action."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, degree + 1, dtype=torch.float64))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        powers = action.pow(torch.arange(self.weights.shape[1]))
        return ((observation @ self.weights) * powers).sum(-1, keepdim=True)


def test_the_loss_learns_the_soft_q_function_of_a_box() -> None:
    """Fitted soft Q-iteration with many uniform samples ends where quadrature does. Rewards 3 a and -2 a."""
    rule, tau, gamma = gauss_legendre(12), 0.5, 0.8
    a = rule.nodes.squeeze(-1)
    leave = 0.5 * (1 + a)
    P = torch.stack((torch.stack((1 - leave, leave), -1), torch.stack((leave, 1 - leave), -1)))
    mdp = TabularMDP(P, torch.stack((3 * a, -2 * a)), gamma)
    exact = continuous_soft_q_iteration(mdp, rule.weights, tau)
    s, n, following = mdp.P.nonzero(as_tuple=True)
    eye, stop = torch.eye(2, dtype=torch.float64), torch.zeros(len(s), 1, dtype=torch.bool)
    ends = {"reward": mdp.r[s, n].unsqueeze(-1), "done": stop, "terminated": stop}
    data = TensorDict(
        {
            "observation": eye[s],
            "action": rule.nodes[n],
            "priority_weight": mdp.P[s, n, following],
            "next": {"observation": eye[following], **ends},
        },
        [len(s)],
    )
    table = Table(2)
    actor = StochasticSamplerActor(nn.Identity(), 2, low=[-1.0], high=[1.0], num_cells=[4]).double()
    critic = ValueOperator(table, in_keys=["observation", "action"])
    loss = SoftQLearningLoss(actor, critic, tau=tau, num_value_samples=4000, num_particles=4, diagnostics=False)
    loss.make_value_estimator(gamma=gamma)
    torch.manual_seed(0)
    for _ in range(25):
        # The minimum of the quadratic loss, in closed form: Q is linear in the weights.
        target = loss._one_step_target(data, loss._soft_value(data, data["next"])[0])
        features = (eye[s].unsqueeze(-1) * a[n].unsqueeze(-1).pow(torch.arange(3)).unsqueeze(1)).flatten(1)
        w = data["priority_weight"].sqrt().unsqueeze(-1)
        solution = torch.linalg.lstsq(w * features, w * target.unsqueeze(-1)).solution
        table.weights.data.copy_(solution.reshape(2, 3))
        loss._target_params("qvalue_network").update_(loss.qvalue_network_params.data)
    q = torch.stack([(table.weights[i] * a.unsqueeze(-1).pow(torch.arange(3))).sum(-1) for i in range(2)])
    # Q is r + gamma P V, so exactly a polynomial of degree one; what is left is the error of 4000 samples.
    assert (q - exact.q).abs().max() < 0.06


@pytest.mark.parametrize("proposal", ["lattice", "uniform"])
def test_the_soft_value_of_a_box_by_hand(proposal: str, cases: Any) -> None:
    """All K actions in one call of the target critics; D ln 2 for the volume of the box, whatever its bounds."""
    case = cases["soft_q_twin"]
    loss, data = case.loss(num_value_samples=7, proposal=proposal), case.batch(5)
    torch.manual_seed(3)
    value, ess = loss._soft_value(data, data["next"])
    torch.manual_seed(3)
    uniform = torch.rand(5, 7, 2)
    if proposal == "lattice":
        torch.manual_seed(3)
        uniform = (lattice_points(7, 2).float() + torch.rand(5, 1, 2)) % 1
    action = torch.tensor([-1.0, -2.0]) + torch.tensor([2.0, 4.0]) * uniform
    q = loss._q(loss._bound(data, "qvalue_network")[1], data["next"], action)
    for c, b, k in ((0, 1, 2), (1, 4, 6)):
        one = loss._q(loss._bound(data, "qvalue_network")[1], data["next"][b : b + 1], action[b : b + 1, k])
        torch.testing.assert_close(q[c, b, k], one[c, 0])
    expected = soft_value(q.amin(0), 0.5) - 0.5 * math.log(7) + 0.5 * 2 * math.log(2)
    torch.testing.assert_close(value, expected)
    assert ((ess >= 1) & (ess <= 7)).all()


def test_the_flow_as_proposal_knows_its_density() -> None:
    """With its own samples the soft value of Q = tau ln p is the same at every sample: ln 1, the density's integral."""
    torch.manual_seed(0)
    actor = FlowActor(nn.Linear(3, 8), 8, low=[-1.0, 0.0], high=[1.0, 4.0], num_cells=8)
    nn.init.normal_(actor.weight_out, std=0.3)
    states = TensorDict({"observation": torch.randn(6, 3)}, [6])
    u, log_p = actor.particles(states, 50)
    assert u.shape == (6, 50, 2) and log_p.shape == (6, 50)
    action = actor.squashed(u)
    # The density per unit of [-1, 1]^2 is that of actions in their own units, times the half-widths.
    expected = actor.get_dist(states).log_prob(action.movedim(1, 0)).movedim(0, 1) + math.log(1.0 * 2.0)
    inner = (u.tanh().abs() < 0.999).all(-1)  # log_prob takes atanh back, in float32
    assert inner.float().mean() > 0.9
    torch.testing.assert_close(log_p[inner], expected[inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["soft_q", "soft_q_twin"])
def test_the_gradient_is_the_direction_through_the_sampler(cases: Any, name: str) -> None:
    """Minus the mean over moving particles of direction times du/dphi; the fixed half gets none; the smaller critic."""
    case = cases[name]
    loss, data = case.loss(), case.batch(4)
    torch.manual_seed(3)
    still, moving = (loss.actor_network.particles(data, 3)[0] for _ in range(2))
    torch.manual_seed(3)
    rows, spread = loss._stein_loss(data)
    fixed = still.detach().requires_grad_()
    action = loss.actor_network.squashed(fixed)
    q = (
        torch.stack(
            [c.module(data["observation"].unsqueeze(1).expand(4, 3, 4), action) for c in loss.qvalue_network.critics]
        )
        .amin(0)
        .squeeze(-1)
    )
    log_p = q / 0.5 + (1 - fixed.tanh().square()).log().sum(-1)
    (score,) = torch.autograd.grad(log_p.sum(), fixed)
    direction = svgd_direction(fixed, score, moving, svgd_bandwidth(moving)).detach()
    params = list(loss.actor_network.parameters())
    expected = torch.autograd.grad((direction * moving).sum() / 3 / 4, params)
    for got, want in zip(torch.autograd.grad(-rows.mean(), params), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(spread, torch.cat((still, moving), 1).tanh().std(1).mean(-1).detach())
