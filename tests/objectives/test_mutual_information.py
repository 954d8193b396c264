"""MIRL's losses: numbers at extreme values, one prior in many hands, diagnostics, state-dependent priors."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.modules import ActionPrior, BoltzmannQActor, PriorEGreedyModule, PriorUpdate
from torchrl_reg.objectives import MutualInformationDQNLoss, PolyakTargetUpdate
from torchrl_reg.objectives.value import PriorSoftTD0Estimator, RegValueEstimators, SoftTD0Estimator
from torchrl_reg.regularizers import BellmanErrorCoefficient

RHO = (0.6, 0.3, 0.1)
BOTH = pytest.mark.parametrize("name", ["mirl", "mi_iqn"])


def gradient_norm(loss: Any) -> float:
    return float(sum(p.grad.abs().sum() for p in loss.parameters() if p.grad is not None))


@pytest.mark.parametrize("scale", [1.0, 1e6, -1e6])
@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_times_q_never_overflows(cases: Any, batch: Any, scale: float, beta: float, dtype: torch.dtype) -> None:
    loss = cases["mirl"].loss(beta=beta).to(dtype)
    for params in (loss.value_network_params, loss.target_value_network_params):
        params.data.mul_(scale)
    data = batch(7, dtype=dtype)
    out = loss(data)
    out["loss"].backward()
    assert all(value.isfinite() for value in out.values())
    assert data["td_error"].isfinite().all() and math.isfinite(gradient_norm(loss))
    q = loss._bound(data)[1](data["next"])
    target = loss.value_estimator.value_estimate(data, next_q=q)
    assert ((target - data["next", "reward"]) / 0.9 <= q.amax(-1, keepdim=True).clamp(min=0) + 1e-3).all()


@pytest.mark.parametrize("constant", [7.0, -3e4])
def test_the_policy_does_not_see_a_constant(constant: float) -> None:
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    q = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.policy(q + constant), prior.policy(q), rtol=0, atol=1e-9)
    assert (prior.greedy(q + constant) == prior.greedy(q)).all()
    assert (prior.greedy(q) != q.argmax(-1)).any()  # the prior does decide some


@BOTH
def test_the_target_sends_no_gradient_into_prior_or_beta(cases: Any, batch: Any, name: str) -> None:
    loss = cases[name].loss()
    loss.prior.log_prior.requires_grad_()
    loss.prior.beta.requires_grad_()
    loss(batch(5))["loss"].backward()
    assert loss.prior.log_prior.grad is None and loss.prior.beta.grad is None


@pytest.mark.parametrize("how", ["smooth_l1", "l1", "l2"])
@pytest.mark.parametrize("diagnostics", [True, False])
def test_squared_td_error_is_the_plain_mean_square(cases: Any, batch: Any, how: str, diagnostics: bool) -> None:
    data = batch(9)
    data["next", "reward"] *= 30  # far out on the linear part of Huber's distance
    data["priority_weight"] = torch.linspace(0.1, 2.0, 9)
    out = cases["mirl"].loss(loss_function=how, reduction="sum", diagnostics=diagnostics)(data)
    torch.testing.assert_close(out["squared_td_error"], data["td_error"].mean())
    assert not out["squared_td_error"].requires_grad
    assert set(out.keys()) >= {"loss", "squared_td_error"} and ("beta" in out.keys()) == diagnostics  # noqa: SIM118


def test_squared_td_error_leaves_masked_rows_out(cases: Any, batch: Any) -> None:
    data = batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    expected = cases["mirl"].loss()(data[mask].clone())["squared_td_error"]
    data["collector", "mask"] = mask.unsqueeze(-1)
    data["next", "reward"][~mask] = torch.nan
    torch.testing.assert_close(cases["mirl"].loss()(data)["squared_td_error"], expected)


def test_squared_td_error_of_quantiles_is_that_of_their_means(cases: Any, batch: Any) -> None:
    data = batch(9)
    out = cases["mi_iqn"].loss()(data)
    assert out["squared_td_error"] > 0 and out["squared_td_error"] >= out["td_error"] ** 2


def test_diagnostics_are_what_they_say(cases: Any, batch: Any) -> None:
    data = batch(40, dtype=torch.float64)
    loss = cases["mirl"].loss().double()
    out = loss(data)
    q = loss._bound(data)[0](data).detach()
    rho = torch.tensor(RHO, dtype=torch.float64)
    pi = rho * (2.0 * q).exp()
    pi = pi / pi.sum(-1, keepdim=True)
    marginal = pi.mean(0)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.log()).sum(-1)

    expected = {
        "entropy": entropy(pi).mean(),
        "kl": (pi * (pi / rho).log()).sum(-1).mean(),
        "prior_entropy": entropy(rho),
        "mutual_information": entropy(marginal) - entropy(pi).mean(),
        "soft_gap": ((rho * (2.0 * q).exp()).sum(-1).log() / 2.0 - q.amax(-1)).mean(),
        "beta": torch.tensor(2.0),
    }
    for key, value in expected.items():
        torch.testing.assert_close(out[key].double(), value.double(), rtol=0, atol=1e-6)
    # I(S; A) is what is left of the KL once the prior is the marginal.
    rest = (marginal * (marginal / rho).log()).sum()
    torch.testing.assert_close((out["mutual_information"] + rest).double(), out["kl"].double(), rtol=0, atol=1e-6)


def test_one_state_carries_no_information(cases: Any, batch: Any) -> None:
    data = batch(1).expand(6).clone()
    assert cases["mirl"].loss()(data)["mutual_information"].abs() < 1e-6
    assert cases["mirl"].loss()(batch(1))["mutual_information"].abs() < 1e-6


# -- one prior, many owners -----------------------------------------------------------------------------------------


def family(seed: int = 0) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    beta = BellmanErrorCoefficient(2.0, rate=0.5, inverse=True)
    prior = ActionPrior(3, probabilities=RHO, beta=beta)
    loss = MutualInformationDQNLoss(actor, prior=prior).make_value_estimator(gamma=0.9)
    PolyakTargetUpdate(loss, rate=0.5)
    explorer = TensorDictSequential(actor, PriorEGreedyModule(Categorical(3), prior, eps_init=0.0, eps_end=0.0))
    sampler = BoltzmannQActor(actor, prior=prior)
    return prior, loss, explorer, sampler, PriorUpdate(prior, actor, rate=0.1), beta


def priors_of(owners: Any) -> list[ActionPrior]:
    return [m for owner in owners for m in owner.modules() if isinstance(m, ActionPrior)]


@pytest.mark.parametrize("move", ["nothing", "double", "to", "cpu", "half", "load"])
def test_every_owner_sees_one_prior(batch: Any, move: str) -> None:
    prior, loss, explorer, sampler, prior_update, beta = owners = family()
    if move == "load":
        other = family(seed=1)
        other[0].assign(torch.tensor([0.1, 0.1, 0.8]))
        loss.load_state_dict(other[1].state_dict())
        torch.testing.assert_close(prior.log_prior, other[0].log_prior)
    elif move != "nothing":
        getattr(loss, move)(*([torch.float64] if move == "to" else []))
        getattr(explorer, move)(*([torch.float64] if move == "to" else []))
    held = priors_of(owners)
    assert len(held) == 5 and all(p is prior for p in held)
    assert prior.log_prior.dtype == prior.beta.dtype == torch.float64
    loss.beta = 4.0
    prior_update.prior.assign(torch.tensor([0.2, 0.2, 0.6]))
    for p in (loss.prior, explorer[1].prior, sampler.prior):
        assert float(p.beta) == 4.0
        torch.testing.assert_close(p.log_prior.exp(), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64))


def test_buffers_stay_where_a_captured_graph_reads_them(batch: Any) -> None:
    prior, loss, _, _, prior_update, beta = family()
    held = prior.log_prior.data_ptr(), prior.beta.data_ptr()
    data = batch(6)
    prior_update(data), beta.observe(loss(data)["squared_td_error"])
    loss.beta = 3.0
    loss.beta = torch.tensor(5.0)
    loss.load_state_dict(loss.state_dict())
    assert (prior.log_prior.data_ptr(), prior.beta.data_ptr()) == held
    assert float(loss.beta) == 5.0


def test_copies_of_all_owners_together_stay_tied(batch: Any) -> None:
    prior, *owners = family()
    twins = copy.deepcopy(owners)
    held = priors_of(twins)
    assert all(p is held[0] for p in held) and held[0] is not prior
    twins[0].beta = 9.0
    assert float(prior.beta) == 2.0 and float(twins[1][1].prior.beta) == 9.0


def test_the_state_dict_holds_prior_and_beta() -> None:
    prior, loss, explorer, *_ = family()
    assert {"regularizer.prior.log_prior", "regularizer.prior.beta_coefficient.current"} <= set(loss.state_dict())
    keys = {k.removeprefix("module.") for k in explorer.state_dict()}
    assert {"1.prior.log_prior", "1.prior.beta_coefficient.current", "1.eps"} <= keys
    assert not list(prior.parameters())


# -- estimator ------------------------------------------------------------------------------------------------------


def test_the_estimator_on_the_stock_dqn_loss(cases: Any, batch: Any) -> None:
    data = batch(11)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    stock = DQNLoss(cases["mirl"].actor(), loss_function="smooth_l1")
    PolyakTargetUpdate(stock, rate=0.5)
    stock.make_value_estimator(PriorSoftTD0Estimator.for_loss(stock, gamma=0.9, prior=prior))
    ours = cases["mirl"].loss(perturb=False)
    torch.testing.assert_close(stock(data.clone())["loss"], ours(data)["loss"])
    prior.assign(torch.tensor([0.1, 0.1, 0.8]))
    assert (stock(data.clone())["loss"] - ours(data)["loss"]).abs() > 1e-3


def test_every_way_to_name_the_estimator(cases: Any, batch: Any) -> None:
    expected = cases["mirl"].loss()(batch(7))["loss"]
    for how in ("prior_soft_td0", "td0", RegValueEstimators.PRIOR_SOFT_TD0, PriorSoftTD0Estimator):
        loss = cases["mirl"].loss()
        assert loss.make_value_estimator(how, gamma=0.9, beta=2.0) is loss
        assert type(loss.value_estimator) is PriorSoftTD0Estimator
        torch.testing.assert_close(loss(batch(7))["loss"], expected)
    assert float(cases["mirl"].loss().make_value_estimator(gamma=0.9, beta=3.0).beta) == 3.0


def test_the_estimator_alone_and_what_it_refuses(cases: Any, batch: Any) -> None:
    data = batch(5)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    estimator = PriorSoftTD0Estimator(gamma=0.9, value_network=cases["mirl"].actor(), prior=prior)
    out = estimator(data.clone())
    q = cases["mirl"].actor()(data.select("observation"))["action_value"]
    value = (torch.tensor(RHO) * (2.0 * q).exp()).sum(-1, keepdim=True).log() / 2.0
    torch.testing.assert_close(out["value_target"] - out["advantage"], value)
    uniform = PriorSoftTD0Estimator(gamma=0.9, value_network=cases["mirl"].actor())
    given = PriorSoftTD0Estimator(gamma=0.9, value_network=cases["mirl"].actor(), prior=ActionPrior(3, beta=1.0))
    torch.testing.assert_close(uniform.value_estimate(data), given.value_estimate(data))
    with pytest.raises(ValueError, match="double_dqn=True"):
        PriorSoftTD0Estimator.for_loss(DQNLoss(cases["mirl"].actor(), double_dqn=True), prior=prior)
    with pytest.raises(NotImplementedError, match="takes a PriorSoftTD0Estimator"):
        cases["mirl"].loss().make_value_estimator(SoftTD0Estimator)


def test_a_plain_network_needs_a_prior() -> None:
    with pytest.raises(ValueError, match="does not say how many actions"):
        MutualInformationDQNLoss(nn.Linear(4, 3), action_space="categorical")
    loss = MutualInformationDQNLoss(nn.Linear(4, 3), action_space="categorical", prior=[0.5, 0.5])
    data = TensorDict({"observation": torch.randn(2, 4), "action": torch.zeros(2, dtype=torch.long)}, [2])
    data["next"] = {"observation": torch.randn(2, 4), "reward": torch.zeros(2, 1)}
    data["next", "done"] = data["next", "terminated"] = torch.zeros(2, 1, dtype=torch.bool)
    PolyakTargetUpdate(loss, rate=0.5)
    with pytest.raises(ValueError, match="over the network's 3 actions, got 2"):
        loss(data)


# -- state-dependent priors -----------------------------------------------------------------------------------------


def with_prior_network(cases: Any, name: str = "mirl", **kwargs: Any) -> Any:
    torch.manual_seed(4)
    network = TensorDictModule(nn.Linear(2, 3), in_keys=["part"], out_keys=["log_prior"])
    return cases[name].loss(prior=None, prior_network=network, **kwargs)


def in_parts(data: TensorDict) -> TensorDict:
    for at in (data, data["next"]):
        at["part"] = at["observation"][..., :2].clone()
    return data


@BOTH
def test_a_prior_network_reads_its_keys_and_learns_alone(cases: Any, batch: Any, name: str) -> None:
    loss = with_prior_network(cases, name)
    assert {"part", ("next", "part")} <= set(loss.in_keys) and loss.out_keys == ["loss", "loss_prior"]
    data = in_parts(batch(9))
    out = loss(data)
    out["loss_prior"].backward(retain_graph=True)
    assert {n.split(".")[0] for n, p in loss.named_parameters() if p.grad is not None} == {"regularizer"}
    assert gradient_norm(loss) > 1e-3
    loss.zero_grad()
    out["loss"].backward()
    assert {n.split(".")[0] for n, p in loss.named_parameters() if p.grad is not None} == {"value_network_params"}
    assert not any(p.requires_grad for p in loss.target_value_network_params.values(True, True))


def test_the_target_with_a_prior_network_is_the_equation(cases: Any, batch: Any) -> None:
    data = in_parts(batch(9, dtype=torch.float64))
    loss = with_prior_network(cases, loss_function="l2", reduction="none").double()
    logits = [loss.prior_network.module(at["part"]) for at in (data, data["next"])]
    log_rho, next_log_rho = (x.log_softmax(-1) for x in logits)
    online, target = loss._bound(data)
    q, next_q = online(data), target(data["next"])
    value = torch.logsumexp(next_log_rho + 2.0 * next_q, -1) / 2.0
    goal = data["next", "reward"].squeeze(-1) + 0.9 * value * ~data["next", "terminated"].squeeze(-1)
    chosen = q.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    log_pi = (log_rho + 2.0 * q).log_softmax(-1)
    out = loss(data)
    torch.testing.assert_close(out["loss"], (chosen - goal).square(), rtol=0, atol=1e-10)
    kl = (log_pi.exp() * (log_pi - log_rho)).sum(-1)
    torch.testing.assert_close(out["loss_prior"], kl, rtol=0, atol=1e-10)
    torch.testing.assert_close(out["kl"].double(), kl.mean(), rtol=0, atol=1e-6)


def test_a_prior_network_under_masks_dispatch_and_compilation(cases: Any, batch: Any) -> None:
    data = in_parts(batch(8))
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    expected = with_prior_network(cases)(data[mask].clone())
    padded = data.clone()
    padded["collector", "mask"] = mask.unsqueeze(-1)
    padded["part"][~mask] = torch.nan
    padded["next", "observation"][~mask] = torch.nan
    loss = with_prior_network(cases)
    out = loss(padded)
    for key in ("loss", "loss_prior"):
        torch.testing.assert_close(out[key], expected[key])
    (out["loss"] + out["loss_prior"]).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    loss = with_prior_network(cases)
    one, two = loss(**{"_".join([k] if isinstance(k, str) else k): data[k] for k in loss.in_keys})
    both = loss(data.clone())
    torch.testing.assert_close(torch.stack((one, two)), torch.stack((both["loss"], both["loss_prior"])))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(data.clone())["loss_prior"], both["loss_prior"])


def test_copies_and_state_dicts_with_a_prior_network(cases: Any, batch: Any) -> None:
    data = in_parts(batch(8))
    loss = with_prior_network(cases)
    twin = copy.deepcopy(loss)
    expected = loss(data.clone())["loss_prior"].detach()
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(0.5)
    torch.testing.assert_close(twin(data.clone())["loss_prior"].detach(), expected)
    assert (loss(data.clone())["loss_prior"].detach() - expected).abs() > 1e-3
    loss.load_state_dict(twin.state_dict())
    torch.testing.assert_close(loss(data.clone())["loss_prior"].detach(), expected)


def test_a_prior_that_sees_nothing_is_the_marginal(cases: Any, batch: Any) -> None:
    """Distillation of one prior for all states is the moving average's fixed point: the mean policy under it."""
    data = batch(30, dtype=torch.float64)
    for at in (data, data["next"]):
        at["part"] = torch.zeros(30, 2, dtype=torch.float64)
    loss = with_prior_network(cases).double()
    biases = [p for n, p in loss.named_parameters() if n.startswith("regularizer")]
    optimizer = torch.optim.SGD(biases, lr=1.0)
    for _ in range(3000):
        optimizer.zero_grad()
        loss(data)["loss_prior"].backward()
        optimizer.step()
    learnt = loss.regularizer.at_states(data)["log_prior"][0]
    prior = ActionPrior(3, beta=2.0)
    update = PriorUpdate(prior, rate=0.05)
    q = loss._bound(data)[0](data).detach()
    for _ in range(3000):
        update(TensorDict({"action_value": q.unsqueeze(1)}, [30, 1]))
    torch.testing.assert_close(learnt.exp(), prior.log_prior.exp(), rtol=0, atol=1e-4)
    assert (learnt.exp() - 1 / 3).abs().max() > 0.05


@BOTH
def test_exploration_with_a_prior_network(cases: Any, batch: Any, name: str) -> None:
    loss = with_prior_network(cases, name)
    data = in_parts(batch(9)).select("observation", "part")
    explorer = TensorDictSequential(
        cases[name].actor(),
        loss.prior_network,
        PriorEGreedyModule(Categorical(3), loss.prior, eps_init=0.0, eps_end=0.0, log_prior_key="log_prior"),
    )
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        out = explorer(data)
    logits = out["log_prior"].log_softmax(-1) + 2.0 * out["action_value"]
    assert (out["action"] == logits.argmax(-1)).all()
