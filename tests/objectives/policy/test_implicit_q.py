"""The implicit-Q loss against its equation, and against the methods it contains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor, QValueActor, ValueOperator

from torchrl_reg.modules import FlowActor, gaussian_actor
from torchrl_reg.objectives import ImplicitQLoss, PathConsistencyLoss, PolyakTargetUpdate, SoftDQNLoss

GAMMA, TAU, ALPHA = 0.9, 0.5, 0.5
BINS = {"multicategorical": [5, 5], "ragged": [3, 5]}


def log_pi_row(kind: str, actor: Any, params: Any, row: Any) -> Tensor:
    """ln pi of the stored action of one row, from the logits."""
    with params.to_module(actor):
        if kind == "categorical":
            logits = actor.module[0].module(row["observation"])
            return logits[row["action"]] - torch.logsumexp(logits, -1)
        logits, out, start = actor.network(row["observation"]), 0.0, 0
        for d, bins in enumerate(BINS[kind]):
            part = logits[start : start + bins]
            out, start = out + part[row["action_index"][d]] - torch.logsumexp(part, -1), start + bins
        return out


def value_row(network: Any, params: Any, observation: Tensor) -> Tensor:
    with params.to_module(network):
        return network.module(observation).squeeze(-1)


def expected(name: str, case: Any, loss: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Prediction and target of every row."""
    predictions, targets = [], []
    actor, network = loss.actor_network, loss.value_network
    for row in data.unbind(0):
        online = log_pi_row(case.kind, actor, loss.actor_network_params, row)
        predictions.append(TAU * online + value_row(network, loss.value_network_params, row["observation"]))
        following = row["next", "observation"]
        if "residual" in name:
            bootstrap = value_row(network, loss.value_network_params, following)
        else:
            bootstrap = value_row(network, loss.target_value_network_params, following).detach()
        target = row["next", "reward"].squeeze() + GAMMA * bootstrap * float(not row["next", "terminated"])
        if loss.alpha > 0:
            lagged = TAU * log_pi_row(case.kind, actor, loss.target_actor_network_params, row).detach()
            target = target + ALPHA * lagged.clamp(min=float(loss.clip_min))
        targets.append(target)
    return torch.stack(predictions), torch.stack(targets)


@pytest.mark.parametrize("size", [1, 17])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", ["iq", "m_iq", "m_iq_ragged", "m_iq_categorical", "m_iq_residual"])
def test_loss_is_the_equation(cases: Any, name: str, clip: bool, size: int) -> None:
    case = cases[name]
    loss = (case.loss() if clip else case.loss(clip_min=None)).double()
    data = case.batch(size, dtype=torch.float64)
    prediction, target = expected(name, case, loss, data)
    gradients = torch.autograd.grad((prediction - target).square().mean(), list(loss.parameters()))

    out = loss(data)
    error = (prediction - target).detach()
    torch.testing.assert_close(out["loss"], error.square().mean(), rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], list(loss.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(data["td_error"].squeeze(-1), error.square(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out["td_error"].double(), error.abs().mean(), rtol=1e-5, atol=0)
    for kind, function in (("l1", nn.functional.l1_loss), ("smooth_l1", nn.functional.smooth_l1_loss)):
        loss.loss_function = kind
        torch.testing.assert_close(loss(data)["loss"], function(prediction, target), rtol=0, atol=1e-12)


def test_diagnostics_are_those_of_the_batch(cases: Any) -> None:
    case = cases["m_iq_categorical"]
    loss, data = case.loss().double(), case.batch(40, dtype=torch.float64)
    out = loss(data)
    logs = []
    for params in (loss.actor_network_params, loss.target_actor_network_params):
        with params.to_module(loss.actor_network):
            logs.append(loss.actor_network.module[0].module(data["observation"]).log_softmax(-1).detach())
    online, lagged = logs
    chosen = [x.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1) for x in logs]
    want = {
        "entropy": -(online.exp() * online).sum(-1).mean(),
        "kl": (online.exp() * (online - lagged)).sum(-1).mean(),
        "log_pi": chosen[0].mean(),
        "bonus": ALPHA * (TAU * chosen[1]).clamp(min=-0.3).mean(),
        "bonus_clipped": (TAU * chosen[1] < -0.3).double().mean(),
        "tau": torch.tensor(TAU),
    }
    assert 0.1 < want["bonus_clipped"] < 0.9
    for name, value in want.items():
        torch.testing.assert_close(out[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_actions_and_their_bins_are_the_same(cases: Any) -> None:
    """By default the action is read: a random warm-up writes no bins. It lies in its bin exactly."""
    case = cases["m_iq"]
    data, loss = case.batch(9), case.loss()
    assert loss.tensor_keys.action == "action"
    by_action = loss(data.exclude("action_index"))["loss"]
    loss.set_keys(action="action_index")
    assert torch.equal(loss(data.exclude("action"))["loss"], by_action)
    with pytest.raises(KeyError, match=r"an entry 'action_index'.*set_keys\(action=...\)"):
        loss(data.exclude("action_index"))


# -- limits ---------------------------------------------------------------------------------------------------------


class ImplicitQ(nn.Module):
    """``V + tau ln pi`` as a Q-network."""

    def __init__(self, logits: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.logits, self.value = logits, value

    def forward(self, observation: Tensor) -> Tensor:
        return self.value(observation) + TAU * self.logits(observation).log_softmax(-1)


@pytest.mark.parametrize("kind", ["categorical", "one dimension of bins"])
def test_soft_dqn_is_a_limit(cases: Any, actor: Any, value_network: Any, kind: str) -> None:
    """The soft value of V + tau ln pi is V; the gradient flows the same way."""
    from torchrl_reg.modules import MulticategoricalActor

    case = cases["m_iq_categorical"]
    data = case.batch(20, dtype=torch.float64)
    policy, value = case.networks()
    logits = policy.module[0].module
    if kind != "categorical":
        policy = MulticategoricalActor(logits, low=-1.0, high=1.0, num_bins=3)
        data["action_index"] = data["action"].unsqueeze(-1)
    loss = ImplicitQLoss(policy, value, tau=TAU).make_value_estimator(gamma=GAMMA)
    if kind != "categorical":
        loss.set_keys(action="action_index")
    other_policy, other_value = case.networks()
    network = ImplicitQ(other_policy.module[0].module, other_value.module)
    soft = SoftDQNLoss(QValueActor(network, spec=Categorical(3)), tau=TAU, loss_function="l2")
    soft.make_value_estimator(gamma=GAMMA)
    for module in (loss, soft):
        PolyakTargetUpdate(module, rate=0.5)
        module.double()
    target = soft.target_value_network_params["module", "0", "module"]
    for ours, theirs in (
        (loss.target_value_network_params["module"], target["value"]),
        (next(iter(loss.target_actor_network_params.values())), target["logits"]),
    ):
        theirs = theirs.flatten_keys(".")
        for i, p in enumerate(x for x in ours.values(True, True) if x.ndim and x.is_floating_point()):
            if p.shape not in [t.shape for t in theirs.values()]:
                continue
            twin = [t for t in theirs.values() if t.shape == p.shape][0]
            shift = 0.1 * torch.cos(torch.arange(p.numel(), dtype=p.dtype) + i).reshape(p.shape)
            p.data.add_(shift), twin.data.add_(shift)
    one, two = data.clone(), data.clone()
    gradients = [torch.autograd.grad(m(d)["loss"], list(m.parameters())) for m, d in ((loss, one), (soft, two))]
    torch.testing.assert_close(one["td_error"], two["td_error"], rtol=0, atol=1e-12)
    assert one["td_error"].min() > 0
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_the_residual_form_is_one_step_trust_pcl(cases: Any, alpha: float) -> None:
    """Temperature ``(1 - alpha) tau`` and ``lam = alpha tau``; PCL where alpha = 0. Its loss is half the square."""
    case = cases["m_iq_residual"]
    loss = case.loss(alpha=alpha, clip_min=None).double()
    pcl = PathConsistencyLoss(*case.networks(), tau=(1 - alpha) * TAU, lam=alpha * TAU, rollout=1)
    pcl.make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(pcl, rate=0.5)
    pcl.double()
    pcl.target_actor_network_params.data.update_(loss.target_actor_network_params.data)
    data = case.batch(12, dtype=torch.float64)
    data["next", "done"] |= data["next", "terminated"]
    one, steps = loss(data)["loss"], pcl(data.reshape(3, 4))["loss"]
    torch.testing.assert_close(0.5 * one, steps, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(x, list(m.parameters())) for x, m in ((0.5 * one, loss), (steps, pcl))]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_naf_is_a_gaussian_special_case(cases: Any) -> None:
    """``pi = N(mu, tau P^-1)``: Q is NAF's, V its maximum plus ``tau / 2 ln det(2 pi tau P^-1)``."""
    torch.manual_seed(0)
    lower = torch.tensor([[1.3, 0.0], [-0.4, 0.7]], dtype=torch.float64)
    precision = lower @ lower.T
    constant = 0.5 * TAU * torch.logdet(2 * math.pi * TAU * precision.inverse())
    mean = nn.Linear(4, 2, dtype=torch.float64)
    policy = ProbabilisticActor(
        TensorDictModule(mean, in_keys=["observation"], out_keys=["loc"]),
        in_keys=["loc"],
        distribution_class=MultivariateNormal,
        distribution_kwargs={"precision_matrix": precision / TAU},
        return_log_prob=True,
    )
    naf_value = nn.Linear(4, 1, dtype=torch.float64)
    shifted = nn.Linear(4, 1, dtype=torch.float64)
    shifted.weight.data.copy_(naf_value.weight)
    shifted.bias.data.copy_(naf_value.bias + constant)
    value = ValueOperator(shifted, in_keys=["observation"])
    loss = ImplicitQLoss(policy, value, tau=TAU, reduction="none").make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)

    data = cases["m_iq_gaussian"].batch(20, dtype=torch.float64)
    away = data["action"] - mean(data["observation"])
    quadratic = naf_value(data["observation"]).squeeze(-1) - 0.5 * torch.einsum("bi,ij,bj->b", away, precision, away)
    tau_log_pi = TAU * policy.get_dist(data).log_prob(data["action"])
    torch.testing.assert_close(tau_log_pi + shifted(data["observation"]).squeeze(-1), quadratic, rtol=0, atol=1e-12)

    # NAF bootstraps on the maximum, IQ on the soft value: the rewards of NAF make up for the constant between them.
    goes_on = (~data["next", "terminated"].squeeze(-1)).double()
    reward = data["next", "reward"].squeeze(-1) + GAMMA * constant * goes_on
    naf_target = reward + GAMMA * goes_on * naf_value(data["next", "observation"]).squeeze(-1)
    torch.testing.assert_close(loss(data)["loss"], (quadratic - naf_target).square(), rtol=0, atol=1e-11)
    assert constant.abs() > 0.1


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_the_bonus_of_a_density_may_be_positive(cases: Any, value_network: Any, kind: str) -> None:
    torch.manual_seed(0)
    box = {"low": [-0.05, -0.1], "high": [0.05, 0.1]}  # so small that densities exceed 1
    actor = gaussian_actor(nn.Linear(4, 4), **box) if kind == "gaussian" else FlowActor(nn.Linear(4, 8), 8, **box)
    loss = ImplicitQLoss(actor, value_network(), tau=TAU, alpha=ALPHA, clip_min=-0.3)
    loss.make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    data = cases["m_iq_gaussian"].batch(64)
    data["action"] = data["action"] * 0.0499
    with torch.no_grad():
        tau_log_pi = TAU * actor.get_dist(data).log_prob(data["action"])  # the target policy is still the same
    assert (tau_log_pi > 0).any()
    out = loss(data)
    torch.testing.assert_close(out["bonus"], ALPHA * tau_log_pi.clamp(min=-0.3).mean())
    value = actor_free_value(loss, data)
    target = data["next", "reward"].squeeze(-1) + ALPHA * tau_log_pi.clamp(min=-0.3) + GAMMA * value["next"]
    torch.testing.assert_close(out["loss"].detach(), (target - value["here"] - tau_log_pi).square().mean())


def actor_free_value(loss: Any, data: Any) -> dict[str, Tensor]:
    """V(s) and the masked V(s'); the target network still is the online one."""
    network = loss.value_network.module
    alive = ~data["next", "terminated"].squeeze(-1)
    with torch.no_grad():
        here, following = (network(x["observation"]).squeeze(-1) for x in (data, data["next"]))
    return {"here": here, "next": alive * following}


@pytest.mark.parametrize("residual", [True, False])
def test_nan_behind_a_terminal_state_under_a_mask(cases: Any, residual: bool) -> None:
    case = cases["m_iq_residual"] if residual else cases["m_iq"]
    data = case.batch(12)
    mask = torch.arange(12) % 3 > 0
    data["next", "terminated"] = (torch.arange(12) % 2 == 0).unsqueeze(-1)
    data["next", "done"] = data["next", "terminated"].clone()
    data["collector", "mask"] = mask.unsqueeze(-1)
    gradients = []
    for filler in (0.0, torch.nan):
        rows = data.clone()
        rows["next", "observation"][~mask | rows["next", "terminated"].squeeze(-1)] = filler
        loss = case.loss()
        loss(rows)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None]))
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[1], gradients[0])
