"""VIREL's loss against its formulas written out, its literal gradients, and its temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from critic_cases import CASES
from tensordict import TensorDict
from torch import Tensor

from torchrl_reg.regularizers import Coefficient


def drawn(loss: Any, data: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the loss after seed 3: the policy's action (with its gradient), its log-density, and a' at s'."""
    torch.manual_seed(3)
    dist = loss.actor_network.get_dist(data.select("observation"))
    action = dist.rsample()
    ended = data["next", "terminated"]
    following = TensorDict({"observation": torch.where(ended, 0.0, data["next", "observation"])}, data.shape)
    return action, dist.log_prob(action), loss.actor_network.get_dist(following).sample()


def called(loss: Any, data: TensorDict) -> TensorDict:
    torch.manual_seed(3)
    return loss(data)


def critic_values(loss: Any, observation: Tensor, action: Tensor, *, target: bool = False) -> Tensor:
    """``[C, B]``."""
    with (loss.target_qvalue_network_params if target else loss.qvalue_network_params).to_module(loss.qvalue_network):
        return torch.cat([critic.module(observation, action) for critic in loss.qvalue_network.critics], -1).T


def backed_up(data: TensorDict, value: Tensor) -> Tensor:
    """``r + gamma V(s') [B]``."""
    return data["next", "reward"].squeeze(-1) + 0.9 * (~data["next", "terminated"].squeeze(-1) * value)


@pytest.mark.parametrize("name", ["virel", "virel_fixed"])
def test_both_losses_written_out(name: str) -> None:
    """No entropy in the target; the smallest critic in both; the temperature weighs the logarithm alone."""
    loss, data = CASES[name].loss(), CASES[name].batch(9)
    action, log_pi, next_action = drawn(loss, data)
    q = critic_values(loss, data["observation"], action).amin(0)
    target = backed_up(data, critic_values(loss, data["next", "observation"], next_action, target=True).amin(0))
    delta = (target - critic_values(loss, data["observation"], data["action"])).detach()
    out = called(loss, data)
    torch.testing.assert_close(out["loss_actor"], (0.5 * log_pi - q).mean())
    torch.testing.assert_close(out["loss_qvalue"], delta.square().sum(0).mean())
    torch.testing.assert_close(out["bellman_error"], delta.square().mean())
    torch.testing.assert_close(data["td_error"].squeeze(-1), delta.square().amax(0))
    torch.testing.assert_close(out["entropy"], -log_pi.detach().mean())
    torch.manual_seed(3)
    torch.randn(9, 2)  # the action at s, which the error alone does not need
    torch.testing.assert_close(loss.bellman_error(data), delta.square().mean())


def test_with_a_value_network() -> None:
    """The critic bootstraps on its target; it learns the critic's value at the policy's action, without -ln pi."""
    loss, data = CASES["virel_value"].loss(), CASES["virel_value"].batch(9)
    action, _, _ = drawn(loss, data)
    out = called(loss, data)
    value = loss.value_network.module(data["observation"]).squeeze(-1)
    with loss.target_value_network_params.to_module(loss.value_network):
        target = backed_up(data, loss.value_network.module(data["next", "observation"]).squeeze(-1))
    q = critic_values(loss, data["observation"], data["action"])[0]
    torch.testing.assert_close(out["loss_qvalue"], (target - q).square().mean())
    learnt = critic_values(loss, data["observation"], action)[0]
    torch.testing.assert_close(out["loss_value"], (value - learnt).square().mean())


@pytest.mark.parametrize("name", ["virel_value", "virel"])
def test_the_error_of_the_online_networks(name: str) -> None:
    """The temperature's error alone bootstraps on them: the value network, else the critics; the losses stay."""
    case = CASES[name]
    loss, plain, data = case.loss(error_network="online"), case.loss(), case.batch(9)
    _, _, next_action = drawn(loss, data)
    if name == "virel_value":
        value = loss.value_network.module(data["next", "observation"]).squeeze(-1)
    else:
        value = critic_values(loss, data["next", "observation"], next_action).amin(0)
    delta = (backed_up(data, value) - critic_values(loss, data["observation"], data["action"])).detach()
    torch.manual_seed(3)
    torch.randn(9, 2)  # the action at s
    torch.testing.assert_close(loss.bellman_error(data), delta.square().mean())
    out, target = called(loss, data.clone()), called(plain, data.clone())
    assert (out["bellman_error"] - target["bellman_error"]).abs() > 1e-3
    for key in ("loss_actor", "loss_qvalue", "td_error"):
        torch.testing.assert_close(out[key], target[key])
    with pytest.raises(ValueError, match="error_network must be 'target' or 'online', got 'both'"):
        case.loss(error_network="both")


def gradient(value: Tensor, loss: Any, network: str) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, list(getattr(loss, f"{network}_params").parameters()), retain_graph=True)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_em_mode_is_the_gradient_of_the_objective(exponent: float) -> None:
    """``epsilon grad_theta L`` and ``epsilon^2 grad_omega L`` of ``L = E[Q / epsilon] + H``, by autograd, float64."""
    case = CASES["virel_em"]
    loss, data = case.loss(exponent=exponent).double(), case.batch(9, dtype=torch.float64)
    action, log_pi, next_action = drawn(loss, data)
    delta = backed_up(data, critic_values(loss, data["next", "observation"], next_action).amin(0))
    delta = delta - critic_values(loss, data["observation"], data["action"])
    epsilon = 0.3 / exponent * delta.abs().pow(exponent).mean()
    fixed = epsilon.detach()
    # E-step: the smaller critic guides the policy. M-step: the mean of both is what the objective contains.
    e_objective = -fixed * (critic_values(loss, data["observation"], action).amin(0) / fixed - log_pi).mean()
    m_objective = -fixed.square() * (critic_values(loss, data["observation"], action.detach()) / epsilon).mean()
    out = called(loss, data)
    for term, objective, network in (
        ("loss_actor", e_objective, "actor_network"),
        ("loss_qvalue", m_objective, "qvalue_network"),
    ):
        torch.testing.assert_close(gradient(out[term], loss, network), gradient(objective, loss, network))


def test_the_temperature_follows_the_error_of_a_batch() -> None:
    case = CASES["virel"]
    loss, data = case.loss(rate=0.25), case.batch(9)
    out = loss(data)
    assert out["tau"] == 0.5 and loss.tau == 0.5  # a forward pass changes nothing
    loss.observe(out)
    expected = 0.75 * 0.5 + 0.25 * 0.15 * out["bellman_error"].item()
    assert loss.tau.item() == pytest.approx(expected) and loss(data)["tau"] == loss.tau.float()
    released = case.loss(rate=1.0, tau_min=0.02)
    error = released.bellman_error(case.batch(500, seed=5))
    released.observe(error)
    assert released.tau.item() == pytest.approx(0.15 * error.item())
    released.observe(torch.tensor(1e-9))
    assert released.tau == 0.02


def test_a_fixed_temperature_and_one_given() -> None:
    fixed, shared = CASES["virel_fixed"].loss(), Coefficient(0.7, name="tau")
    fixed.observe(torch.tensor(100.0))
    assert fixed.tau == 0.5
    loss = CASES["virel"].loss(tau=shared, beta_scale=None)
    shared.assign(0.1)
    assert loss.tau == 0.1
