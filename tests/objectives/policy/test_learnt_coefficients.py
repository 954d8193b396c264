"""``target_entropy`` finds the temperature, ``max_kl`` the weight of the trust region."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_reg.modules import MulticategoricalActor
from torchrl_reg.objectives import HardTargetUpdate, ImplicitQLoss


def test_the_sign(cases: Any) -> None:
    """Entropy above its target lowers tau, below raises it; the loss is ln tau times the difference."""
    case = cases["m_iq"]
    entropy = float(case.loss()(case.batch(9))["entropy"])
    for target, lowers in ((entropy - 0.1, True), (entropy + 0.1, False)):
        loss = case.loss(target_entropy=target)
        assert loss.out_keys == ["loss", "loss_tau"]
        out = loss(case.batch(9))
        torch.testing.assert_close(out["loss_tau"].item(), math.log(0.5) * (entropy - target), rtol=1e-4, atol=0)
        out["loss_tau"].backward()
        assert (loss.tau_coefficient.log_value.grad > 0) == lowers
        assert all(p.grad is None for name, p in loss.named_parameters() if name != "tau_coefficient.log_value")


def test_the_loss_itself_does_not_move_tau(cases: Any) -> None:
    case = cases["m_iq"]
    loss = case.loss(target_entropy=1.0)
    out = loss(case.batch(9))
    torch.testing.assert_close(out["loss"], case.loss()(case.batch(9))["loss"])
    out["loss"].backward()
    assert loss.tau_coefficient.log_value.grad is None


def test_tau_in_force_is_the_learnt_one(cases: Any) -> None:
    case = cases["m_iq"]
    loss = case.loss(target_entropy=1.0)
    loss.tau_coefficient.log_value.data.fill_(math.log(0.2))
    out = loss(case.batch(9))
    torch.testing.assert_close(out["loss"], case.loss(tau=0.2)(case.batch(9))["loss"])
    for shown in (loss.tau, out["tau"]):
        torch.testing.assert_close(float(shown), 0.2, rtol=1e-6, atol=0)
    assert torch.stack([v for k, v in out.items() if not k.startswith("loss")]).requires_grad is False
    for how in ("assignment", "make_value_estimator"):
        if how == "assignment":
            loss.tau = 0.7
        else:
            loss.make_value_estimator(gamma=0.9, tau=0.7)
        torch.testing.assert_close(loss(case.batch(9))["loss"], case.loss(tau=0.7)(case.batch(9))["loss"])
        loss.tau = 0.1


def test_state_dict_brings_the_learnt_values(cases: Any) -> None:
    for name, learnt in (("m_iq", {"target_entropy": 1.0}), ("trust_pcl", {"max_kl": 0.1})):
        case = cases[name]
        loss, other = case.loss(**learnt), case.loss(**learnt)
        coefficient = loss.tau_coefficient if name == "m_iq" else loss.lam_coefficient
        coefficient.log_value.data.fill_(-1.0)
        expected = loss(case.batch(9))["loss"]
        other.load_state_dict(loss.state_dict())
        torch.testing.assert_close(other(case.batch(9))["loss"], expected)


@pytest.mark.parametrize("name", ["m_iq", "trust_pcl"])
def test_masks_and_two_passes(cases: Any, name: str) -> None:
    case = cases[name]
    learnt, key = ({"target_entropy": 1.0}, "loss_tau") if name == "m_iq" else ({"max_kl": 0.1}, "loss_lam")
    data, keep = case.batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    expected = case.loss(**learnt)(data[keep])[key]
    data["collector", "mask"] = keep.reshape(-1, *[1] * data.ndim).expand(*data.shape, 1).clone()
    data["observation"][~keep] = torch.nan
    loss = case.loss(**learnt)
    torch.testing.assert_close(loss(data)[key], expected)
    (loss(case.batch(4))["loss"] + loss(case.batch(6))["loss"]).backward()


@pytest.mark.parametrize("name", ["m_iq", pytest.param("trust_pcl", marks=pytest.mark.slow)])
def test_compiles(cases: Any, name: str) -> None:
    case = cases[name]
    learnt, key = ({"target_entropy": 1.0}, "loss_tau") if name == "m_iq" else ({"max_kl": 0.1}, "loss_lam")
    torch._dynamo.reset()
    loss = case.loss(**learnt)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            got, want = compiled(case.batch(9, seed=seed)), loss(case.batch(9, seed=seed))
            torch.testing.assert_close(got["loss"], want["loss"])
            torch.testing.assert_close(got[key], want[key])
            (got["loss"] + got[key]).backward()
            with torch.no_grad():
                for p in loss.parameters():
                    p.mul_(0.9)


def test_convergence_on_a_bandit() -> None:
    """One state, rewards r: the policy is softmax(r / tau), and tau the one whose entropy is the target."""
    torch.manual_seed(0)
    reward, target = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64), 0.9
    actor = MulticategoricalActor(nn.Linear(1, 4, bias=False), low=-1.0, high=1.0, num_bins=4)
    value = ValueOperator(nn.Linear(1, 1, bias=False), in_keys=["observation"])
    for network in (actor, value):
        for p in network.parameters():
            nn.init.zeros_(p)
    loss = ImplicitQLoss(actor, value, tau=2.0, target_entropy=target).make_value_estimator(gamma=0.9).double()
    HardTargetUpdate(loss, period_updates=1)
    stop, one = torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1, dtype=torch.float64)
    ends = {"observation": one, "reward": reward.unsqueeze(-1), "done": stop, "terminated": stop}
    data = TensorDict(
        {"observation": one, "action": torch.linspace(-1, 1, 4).unsqueeze(-1).double(), "next": ends}, [4]
    )
    networks = [p for name, p in loss.named_parameters() if name != "tau_coefficient.log_value"]
    groups = [{"params": networks, "lr": 0.1}, {"params": [loss.tau_coefficient.log_value], "lr": 0.02}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for _ in range(600):
        optimizer.zero_grad()
        out = loss(data)
        (out["loss"] + out["loss_tau"]).backward()
        optimizer.step()
    tau = float(loss.tau)
    pi = (reward / tau).softmax(-1)
    assert abs(float(-(pi * pi.log()).sum()) - target) < 1e-6
    assert abs(float(out["entropy"]) - target) < 1e-6
    torch.testing.assert_close(actor.get_dist(data[:1]).probs.flatten().detach(), pi, rtol=0, atol=1e-6)
    torch.testing.assert_close(out["value"].item(), tau * float((reward / tau).logsumexp(-1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["m_iq_gaussian", "m_iq_flow"])
def test_refuses_policies_without_a_closed_entropy(cases: Any, name: str) -> None:
    case = cases[name]
    loss = case.loss(target_entropy=-2.0)
    with pytest.raises(ValueError, match=r"target_entropy needs a policy whose entropy has a closed form.*got a"):
        loss(case.batch(4))


# -- max_kl ---------------------------------------------------------------------------------------------------------


def test_lam_rises_above_the_budget_and_falls_below(cases: Any) -> None:
    case = cases["trust_pcl"]
    kl = float(case.loss()(case.batch(9))["kl"])
    assert kl > 0.01
    for budget, rises in ((0.5 * kl, True), (2.0 * kl, False)):
        loss = case.loss(max_kl=budget)
        assert loss.out_keys == ["loss", "loss_lam"]
        optimizer = torch.optim.SGD([loss.lam_coefficient.log_value], lr=0.1)
        out = loss(case.batch(9))
        torch.testing.assert_close(out["loss_lam"].item(), -math.log(0.3) * (kl - budget), rtol=1e-4, atol=1e-7)
        out["loss_lam"].backward()
        assert all(p.grad is None for name, p in loss.named_parameters() if name != "lam_coefficient.log_value")
        optimizer.step()
        after = loss(case.batch(9))["lam"]
        assert (after > 0.3) == rises and float(loss.lam) == pytest.approx(float(after))
        reference = case.loss(lam=float(loss.lam))
        torch.testing.assert_close(loss(case.batch(9))["loss"], reference(case.batch(9))["loss"])
        loss.lam = 0.6
        torch.testing.assert_close(loss(case.batch(9))["loss"], case.loss(lam=0.6)(case.batch(9))["loss"])


def test_max_kl_takes_tau_zero_and_the_unified_form(cases: Any) -> None:
    """Trust-PCL as published on MuJoCo: no entropy term."""
    for name in ("trust_pcl", "trust_pcl_unified"):
        case = cases[name]
        loss = case.loss(tau=0.0, max_kl=0.1)
        torch.testing.assert_close(loss(case.batch(9))["loss"], case.loss(tau=0.0)(case.batch(9))["loss"])
        loss(case.batch(9))["loss"].backward()
        assert loss.lam_coefficient.log_value.grad is None
