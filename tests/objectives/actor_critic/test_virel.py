"""VIREL's loss against its formulas written out, its literal gradients, and its temperature."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from torchrl_reg.modules import gaussian_actor
from torchrl_reg.objectives import PolyakTargetUpdate, VIRELLoss
from torchrl_reg.regularizers.coefficient import Coefficient


def drawn(loss: Any, data: TensorDict) -> tuple[Any, Tensor, Tensor, Tensor]:
    """What the loss draws after seed 3: the policy's action (with its gradient), its log-density, and a' at s'."""
    actor = loss.actor_network
    torch.manual_seed(3)
    dist = actor.get_dist(data.select("observation"))
    action = dist.rsample()
    following = data["next"].clone()
    following["observation"][data["next", "terminated"].squeeze(-1)] = 0.0
    next_action = actor.get_dist(following.select("observation")).sample()
    return dist, action, dist.log_prob(action), next_action


def critic_values(loss: Any, observation: Tensor, action: Tensor, target: bool = False) -> Tensor:
    critics = copy.deepcopy(loss.qvalue_network) if target else loss.qvalue_network
    if target:
        loss._target_params("qvalue_network").to_module(critics)
    pairs = TensorDict({"observation": observation, "action": action}, observation.shape[:-1])
    return torch.stack([c(pairs.clone())["state_action_value"].squeeze(-1) for c in critics.critics])


@pytest.mark.parametrize("name", ["virel", "virel_fixed"])
def test_both_losses_written_out(cases: Any, name: str) -> None:
    """No entropy in the target; the smallest critic in both; the temperature weighs the logarithm alone."""
    case = cases[name]
    loss, data = case.loss(), case.batch(9)
    _, action, log_pi, next_action = drawn(loss, data)
    q = critic_values(loss, data["observation"], action).amin(0)
    next_q = critic_values(loss, data["next", "observation"], next_action, target=True).amin(0)
    alive = ~data["next", "terminated"].squeeze(-1)
    target = (data["next", "reward"].squeeze(-1) + 0.9 * alive * next_q).detach()
    delta = target - critic_values(loss, data["observation"], data["action"])
    torch.manual_seed(3)
    out = loss(data)
    torch.testing.assert_close(out["loss_actor"], (0.5 * log_pi - q).mean())
    torch.testing.assert_close(out["loss_qvalue"], delta.square().sum(0).mean())
    torch.testing.assert_close(out["bellman_error"], delta.square().mean())
    torch.testing.assert_close(data["td_error"].squeeze(-1), delta.square().amax(0).detach())
    torch.testing.assert_close(out["entropy"], -log_pi.mean())
    torch.manual_seed(3)
    torch.randn(9, 2)  # the action at s, which the error alone does not need
    torch.testing.assert_close(loss.bellman_error(data), delta.square().mean())


def test_with_a_value_network(cases: Any) -> None:
    """The critic bootstraps on its target; it learns the critic's value at the policy's action, without -ln pi."""
    case = cases["virel_value"]
    loss, data = case.loss(), case.batch(9)
    _, action, _, _ = drawn(loss, data)
    torch.manual_seed(3)
    out = loss(data)
    frozen = copy.deepcopy(loss.value_network)
    loss._target_params("value_network").to_module(frozen)
    next_value = frozen(data["next"].select("observation"))["state_value"]
    alive = ~data["next", "terminated"]
    target = (data["next", "reward"] + 0.9 * alive * next_value).squeeze(-1).detach()
    q = critic_values(loss, data["observation"], data["action"])[0]
    torch.testing.assert_close(out["loss_qvalue"], (target - q).square().mean())
    value = loss.value_network(data.select("observation"))["state_value"].squeeze(-1)
    learnt = critic_values(loss, data["observation"], action)[0].detach()
    torch.testing.assert_close(out["loss_value"], (value - learnt).square().mean())


def gradients(value: Tensor, loss: Any, network: str) -> Tensor:
    params = list(getattr(loss, f"{network}_params").parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, params, retain_graph=True)])


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_em_mode_is_the_gradient_of_the_objective(cases: Any, exponent: float) -> None:
    """``epsilon grad_theta L`` and ``epsilon^2 grad_omega L`` of ``L = E[Q / epsilon] + H``, by autograd, float64."""
    case = cases["virel_em"]
    loss, data = case.loss(exponent=exponent).double(), case.batch(9, dtype=torch.float64)
    _, action, log_pi, next_action = drawn(loss, data)
    alive = ~data["next", "terminated"].squeeze(-1)

    def temperature() -> Tensor:
        next_q = critic_values(loss, data["next", "observation"], next_action).amin(0)
        delta = data["next", "reward"].squeeze(-1) + 0.9 * alive * next_q
        delta = delta - critic_values(loss, data["observation"], data["action"])
        return 0.3 / exponent * delta.abs().pow(exponent).mean()

    epsilon = temperature()
    fixed = epsilon.detach()
    # E-step: the smaller critic guides the policy. M-step: the mean of both is what the objective contains.
    e_objective = (critic_values(loss, data["observation"], action).amin(0) / fixed - log_pi).mean()
    m_objective = (critic_values(loss, data["observation"], action.detach()) / epsilon).mean()
    torch.manual_seed(3)
    out = loss(data)
    e_step = gradients(out["loss_actor"], loss, "actor_network")
    torch.testing.assert_close(e_step, -fixed * gradients(e_objective, loss, "actor_network"))
    m_step = gradients(out["loss_qvalue"], loss, "qvalue_network")
    torch.testing.assert_close(m_step, -fixed.square() * gradients(m_objective, loss, "qvalue_network"))


def test_the_temperature_follows_the_error_of_a_batch(cases: Any) -> None:
    case = cases["virel"]
    loss, data = case.loss(rate=0.25), case.batch(9)
    out = loss(data)
    assert out["tau"] == 0.5 and loss.tau == 0.5  # a forward pass changes nothing
    loss.observe(out)
    expected = 0.75 * 0.5 + 0.25 * 0.15 * out["bellman_error"].item()
    assert loss.tau.item() == pytest.approx(expected)
    assert loss(data)["tau"].item() == pytest.approx(expected)

    released = case.loss(rate=1.0)
    error = released.bellman_error(case.batch(500, seed=5))
    released.observe(error)
    assert released.tau.item() == pytest.approx(0.15 * error.item())


def test_the_floor_and_the_fixed_temperature(cases: Any) -> None:
    floored = cases["virel"].loss(rate=1.0, tau_min=0.02)
    floored.observe(torch.tensor(1e-9))
    assert floored.tau == 0.02
    fixed = cases["virel_fixed"].loss()
    fixed.observe(torch.tensor(100.0))
    assert fixed.tau == 0.5
    shared = Coefficient(0.7, name="tau")
    loss = cases["virel"].loss(tau=shared, beta_scale=None)
    shared.assign(0.1)
    assert loss.tau == 0.1


class Quadratic(nn.Module):
    """``Q = -(a - b)^2 / 2``, learnable b."""

    def __init__(self, best: float) -> None:
        super().__init__()
        self.best = nn.Parameter(torch.tensor(best))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return -0.5 * (action - self.best).square() + 0 * observation


def test_the_actor_becomes_the_boltzmann_density() -> None:
    """Of ``Q = -(a - .3)^2 / 2`` at tau = .01 on a wide box: a normal with mean .3 and standard deviation .1."""
    torch.manual_seed(0)
    actor = gaussian_actor(nn.Linear(1, 2), low=[-1.0], high=[1.0])
    critic = ValueOperator(Quadratic(0.3), in_keys=["observation", "action"])
    loss = VIRELLoss(actor, critic, tau=0.01, diagnostics=False)
    data = TensorDict({"observation": torch.zeros(256, 1)}, [256])
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.03)
    frozen = loss._detached_critics(data)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 300)
        dist = actor.get_dist(data)
        action = dist.rsample()
        (loss.tau.float() * dist.log_prob(action) - loss._q(frozen, data, action).amin(0)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sample = actor.get_dist(data[:1]).sample((4000,))
    assert abs(sample.mean() - 0.3) < 0.02 and abs(sample.std() - 0.1) < 0.02


def test_learning_anneals_the_temperature() -> None:
    """A bandit: reward ``-(a - .3)^2``, terminal. The error goes, and with it temperature and randomness."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(3))

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return (torch.cat((action**0, action, action**2), -1) * self.weights).sum(-1, keepdim=True)

    actor = gaussian_actor(nn.Linear(1, 2), low=[-1.0], high=[1.0])
    loss = VIRELLoss(actor, ValueOperator(Net(), in_keys=["observation", "action"]), tau=1.0, beta_scale=0.5, rate=0.1)
    loss.make_value_estimator(gamma=0.9)
    target = PolyakTargetUpdate(loss, rate=0.1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    zeros, ends = torch.zeros(64, 1), torch.ones(64, 1, dtype=torch.bool)
    first = None
    for _ in range(400):
        data = actor(TensorDict({"observation": zeros}, [64])).detach()
        reward = -(data["action"] - 0.3).square()
        data["next"] = TensorDict({"observation": zeros, "reward": reward, "done": ends, "terminated": ends}, [64])
        out = loss(data)
        optimizer.zero_grad()
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        optimizer.step()
        target.step()
        loss.observe(out)
        first = first or (out["tau"].item(), out["entropy"].item())
    assert loss.tau < 0.01 * first[0] and out["entropy"] < first[1] - 1
    assert abs(actor.get_dist(data[:1]).deterministic_sample.item() - 0.3) < 0.05
