"""Layers run one by one, noisy layers and dueling streams: bits, distributions, and their use in losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import MLP

from torchrl_reg.collectors import plain_policy
from torchrl_reg.modules import (
    CategoricalQActor,
    Dueling,
    ImplicitQuantileNetwork,
    NetSettings,
    NoisyLinear,
    QActor,
    QuantileQActor,
    quantile_network,
)
from torchrl_reg.modules.ensembles import MANY_ROWS, stack_layers
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.modules.rebuilding import Spaces
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, QLearningLoss
from torchrl_reg.objectives.heads import DOUBLE, HERE, NEXT, ONLINE
from torchrl_reg.regularizers import Entropy


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Dropout(0.5), nn.ReLU()), MLP(8, 3, num_cells=[5]))


def normalized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.ReLU(), nn.Linear(8, 3))
    nn.init.normal_(net[1].weight)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize(
    ("net", "widths"),
    [
        (network().eval(), [4]),
        (normalized(), [4]),
        (nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(4, 2)), [4]),  # a relu in its input's memory would show
        (nn.Sequential(nn.Flatten(0, 0), nn.ReLU(), nn.Linear(4, 2)), [4]),
        (MLP(6, 1, num_cells=[5, 5], activation_class=nn.ReLU), [4, 2]),  # several inputs are joined
    ],
)
def test_the_same_bits_and_gradients(net: nn.Module, widths: list[int]) -> None:
    inputs = [torch.randn(6, width) for width in widths]
    kept, run, results = [x.clone() for x in inputs], layer_by_layer(net), []
    for call in (run, net):
        out = call(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))])
    assert run is not net and all(map(torch.equal, inputs, kept))
    assert all(map(torch.equal, *results))


def test_it_follows_train_mode_and_swapped_parameters() -> None:
    net, x = network(), torch.randn(6, 4)
    run = layer_by_layer(net)
    assert not torch.equal(run(x), run(x)), "dropout"
    net.eval()
    with TensorDict.from_module(net).detach().clone().zero_().to_module(net):
        assert not run(x).any()
    assert run(x).any()


@pytest.mark.parametrize(
    "register",
    [
        lambda net, hook: net.register_forward_hook(hook),
        lambda net, hook: net[1].register_forward_pre_hook(hook),
        lambda net, hook: net[2][0].register_full_backward_hook(hook),
        lambda net, hook: torch.nn.modules.module.register_module_forward_hook(hook),
    ],
    ids=["whole", "inner sequence", "backward", "global"],
)
def test_hooks_are_heard_until_they_are_removed(register: Any) -> None:
    net, calls = network().eval(), list[int]()
    run = layer_by_layer(net)
    handle = register(net, lambda *_: calls.append(1))
    run(torch.randn(6, 4)).sum().backward()
    handle.remove()
    heard = len(calls)
    run(torch.randn(6, 4)).sum().backward()
    assert 0 < heard == len(calls)


class Mine(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Loud(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) * 2


@pytest.mark.parametrize(
    "net",
    [
        Mine(nn.Linear(4, 3)),
        nn.Sequential(Mine(nn.Linear(4, 3))),
        nn.Sequential(Loud(4, 3)),
        nn.Linear(4, 3),
        MLP(4, torch.Size([2, 3]), num_cells=[5]),
    ],
)
def test_networks_of_another_kind_stay_themselves(net: nn.Module) -> None:
    assert layer_by_layer(net) is net


@pytest.mark.parametrize("rows", [5, MANY_ROWS])  # together, and one network after the other
def test_stacked_layer_norms_are_those_of_each_network(rows: int) -> None:
    singles = [normalized().double() for _ in range(3)]
    net = normalized().double()
    stack_layers(net)
    for name, parameter in net.named_parameters():
        parameter.data = torch.stack([single.get_parameter(name).detach() for single in singles])
    x = torch.randn(3, rows, 4, dtype=torch.float64)
    out = layer_by_layer(net)(x)
    each = [single(part) for single, part in zip(singles, x, strict=True)]
    torch.testing.assert_close(out, torch.stack(each))
    found = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    alone = [torch.autograd.grad(o.square().sum(), list(s.parameters())) for o, s in zip(each, singles, strict=True)]
    torch.testing.assert_close(list(found), [torch.stack(column) for column in zip(*alone, strict=True)])


# -- noisy layers ---------------------------------------------------------------------------------------------------


def transitions(rows: int = 6) -> TensorDict:
    flags = torch.arange(rows).unsqueeze(-1)
    following = {
        "observation": torch.randn(rows, 4),
        "reward": torch.randn(rows, 1),
        "terminated": flags % 3 == 0,
        "done": flags % 3 != 1,
    }
    action = torch.arange(rows) % 3
    return TensorDict({"observation": torch.randn(rows, 4), "action": action, "next": following}, [rows])


def noisy_actor(head: str) -> Any:
    torch.manual_seed(0)
    hidden, spec = [NoisyLinear(4, 16), nn.ReLU()], Categorical(3)
    if head == "implicit":
        torso = nn.Sequential(*hidden)
        sizes = {"num_features": 16, "num_actions": 3, "num_cells": 8}
        return QuantileQActor(ImplicitQuantileNetwork(torso, **sizes), spec=spec)
    atoms = {"expected": 1, "categorical": 11}[head]
    network = nn.Sequential(*hidden, Dueling(NoisyLinear(16, atoms), NoisyLinear(16, 3 * atoms), num_actions=3))
    if head == "expected":
        return QActor(network, spec=spec)
    return CategoricalQActor(network, num_atoms=atoms, value_min=-3, value_max=3, spec=spec)


def test_variance_of_the_outputs() -> None:
    """``sigma_w^2 (2/pi) |x|^2 + sigma_b^2 sqrt(2/pi)``; outputs are uncorrelated, their squares not: factorised."""
    torch.manual_seed(1)
    layer, x = NoisyLinear(5, 2, sigma=0.7), torch.randn(1, 5)
    with torch.no_grad():
        draws = torch.cat([layer(x) for _ in range(40_000)])
    sigma = 0.7 / math.sqrt(5)
    expected = sigma**2 * (2 / math.pi * x.square().sum() + math.sqrt(2 / math.pi))
    assert draws.var(0).tolist() == pytest.approx([expected.item()] * 2, rel=0.04)
    torch.testing.assert_close(draws.mean(0), layer.eval()(x)[0].detach(), atol=0.02, rtol=0)
    centred = draws - draws.mean(0)
    assert abs(torch.corrcoef(centred.T)[0, 1]) < 0.03 and torch.corrcoef(centred.square().T)[0, 1] > 0.1


def test_rows_share_a_draw_and_passes_do_not() -> None:
    layer, x = NoisyLinear(4, 3), torch.randn(1, 4).expand(5, 4)
    first, second = layer(x), layer(x)
    torch.testing.assert_close(first, first[:1].expand(5, 3))
    assert not torch.allclose(first, second)


def test_without_sigma_it_is_linear_and_it_begins_as_published() -> None:
    layer, x = NoisyLinear(9, 4, sigma=0.3), torch.randn(2, 9)
    assert layer.weight.abs().max() <= 1 / 3 and layer.bias.abs().max() <= 1 / 3
    assert layer.weight_sigma.unique().item() == pytest.approx(0.1) == layer.bias_sigma.unique().item()
    with torch.no_grad():
        layer.weight_sigma.zero_(), layer.bias_sigma.zero_()
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not list(layer.buffers())
    assert NoisyLinear(3, 2, bias=False)(torch.randn(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("sigma", [0, -0.5, math.inf, "much"])
def test_refused_sigmas(sigma: Any) -> None:
    with pytest.raises(ValueError, match="sigma must be > 0"):
        NoisyLinear(2, 2, sigma=sigma)


# -- dueling streams ------------------------------------------------------------------------------------------------


def test_streams_of_atoms() -> None:
    """``V_i + A_{a,i} - mean_a A_{a,i}``; a constant in an atom's advantages is nothing, and V gets every gradient."""
    torch.manual_seed(0)
    value, advantage, x = nn.Linear(4, 5), nn.Linear(4, 5 * 3), torch.randn(2, 4)
    net = Dueling(value, advantage, num_actions=3)
    v, a = value(x), advantage(x).view(2, 5, 3)
    q = net(x)
    torch.testing.assert_close(q.view(2, 5, 3), v.unsqueeze(-1) + a - a.mean(-1, keepdim=True))
    weights = torch.randn(2, 5, 3)
    gradients = torch.autograd.grad((q.view(2, 5, 3) * weights).sum(), [value.bias, advantage.bias])
    torch.testing.assert_close(gradients[0], weights.sum((0, 2)))
    torch.testing.assert_close(gradients[1].view(5, 3), (weights - weights.mean(-1, keepdim=True)).sum(0))
    with torch.no_grad():
        advantage.bias.view(5, 3)[2] += 7
    torch.testing.assert_close(net(x), q, atol=1e-5, rtol=0)


def test_streams_of_each_head() -> None:
    """Softmax over the atoms of each action's ``V_i + A_{a,i} - mean_a A_{a,i}`` (C51); streams by fraction (IQN)."""
    torch.manual_seed(0)
    value, advantage, x = nn.Linear(4, 5), nn.Linear(4, 5 * 3), torch.randn(2, 4)
    actor = CategoricalQActor(
        Dueling(value, advantage, num_actions=3), num_atoms=5, value_min=-2, value_max=2, spec=Categorical(3)
    )
    a = advantage(x).view(2, 5, 3)
    p = (value(x).unsqueeze(-1) + a - a.mean(-1, keepdim=True)).softmax(-2)
    expected = (p * torch.linspace(-2, 2, 5).unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(actor(TensorDict({"observation": x}, [2]))["action_value"], expected)
    settings, env = NetSettings(num_cells=[7, 6], dueling="mean"), Spaces({"observation": ([4], "float32")}, 3, [], [])
    network, fractions = quantile_network(settings, env), torch.rand(2, 5)  # type: ignore[arg-type]
    (dueling,) = (module for module in network.modules() if isinstance(module, Dueling))
    cosines = (math.pi * torch.arange(1, 65) * fractions.unsqueeze(-1)).cos()
    features = network.features(x).unsqueeze(-2) * network.embedding(cosines).relu()
    a = dueling.advantage(features)
    torch.testing.assert_close(network(x, fractions), dueling.value(features) + a - a.mean(-1, keepdim=True))


@pytest.mark.parametrize(("value", "advantage"), [(1, 6), (2, 5), (2, 3)])
def test_streams_of_other_widths_are_refused(value: int, advantage: int) -> None:
    net = Dueling(nn.Linear(4, value), nn.Linear(4, advantage), num_actions=3)
    with pytest.raises(ValueError, match=f"advantage must be 3 times as wide as value .*, got {advantage}"):
        net(torch.randn(1, 4))


def test_the_maximum_is_the_limit_of_implicit_q_values() -> None:
    """``v + tau ln softmax(adv / tau)`` as tau -> 0, and ``v`` is then the greedy value."""
    value, advantage, x = nn.Linear(4, 1).double(), nn.Linear(4, 3).double(), torch.randn(8, 4).double()
    q = Dueling(value, advantage, num_actions=3, baseline="max", shared=nn.Identity())(x)
    tau = 1e-9
    torch.testing.assert_close(q, value(x) + tau * (advantage(x) / tau).log_softmax(-1), atol=1e-7, rtol=0)
    torch.testing.assert_close(q.amax(-1, keepdim=True), value(x))
    (gradient,) = torch.autograd.grad(q.amax(-1).sum(), advantage.bias)
    assert not gradient.any()
    with pytest.raises(ValueError, match="baseline must be 'mean' or 'max', got 'median'"):
        Dueling(value, advantage, num_actions=3, baseline="median")


# -- noise in a loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["expected", "categorical", "implicit"])
def test_sigmas_have_a_gradient_and_two_draws_give_two_losses(head: str) -> None:
    loss = QLearningLoss(noisy_actor(head), regularizer=Entropy(0.5), shaping=Munchausen(0.5))
    HardTargetUpdate(loss, period_updates=1)
    data = transitions()
    first, second = (loss(data.clone())["loss"] for _ in range(2))
    assert not torch.allclose(first, second)
    first.backward()
    named = dict(loss.named_parameters())
    sigmas = [p for name, p in named.items() if "sigma" in name]
    assert sigmas and all(p.grad is not None and p.grad.abs().sum() > 0 for p in sigmas)
    loss.value_network.eval()
    assert torch.equal(loss(data.clone())["loss"], loss(data.clone())["loss"]) is (head != "implicit")


def test_sigmas_have_a_gradient_and_two_draws_give_two_losses_compiled() -> None:
    loss = QLearningLoss(noisy_actor("expected"), regularizer=Entropy(0.5), diagnostics=False)
    HardTargetUpdate(loss, period_updates=1)
    compiled, data = torch.compile(loss, backend="aot_eager"), transitions()
    first, second = (compiled(data.clone())["loss"] for _ in range(2))
    assert not torch.allclose(first, second)
    first.backward()
    sigmas = [p for name, p in loss.named_parameters() if "sigma" in name]
    assert len(sigmas) == 6 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in sigmas)


def test_online_and_target_network_draw_each_their_own() -> None:
    """With gamma 1, no reward and no end, the TD error of a state that follows itself is noise alone, and not zero."""
    loss = QLearningLoss(noisy_actor("expected"), loss_function="l1").make_value_estimator(gamma=1.0)
    HardTargetUpdate(loss, period_updates=1)
    data = transitions(1)
    data["next", "observation"], data["next", "reward"] = data["observation"], torch.zeros(1, 1)
    data["next", "terminated"], data["next", "done"] = torch.zeros(2, 1, 1, dtype=torch.bool).unbind()
    q = loss.value_network.eval()(data.clone())["action_value"]
    data["action"] = q.argmax(-1)
    assert loss(data.clone())["loss"] == 0
    loss.value_network.train()
    assert loss(data.clone())["loss"] > 1e-3


@pytest.mark.parametrize("head", ["expected", "categorical"])
def test_each_step_of_acting_draws_anew(head: str) -> None:
    """Also where the collector calls the network without a TensorDict; nothing is drawn in eval mode."""
    actor = noisy_actor(head)
    act, x = plain_policy(actor), torch.randn(2, 4)
    for alike in (False, True):
        states: list[dict[str, Tensor]] = [{"observation": x}, {"observation": x}]
        for state in states:
            act(state)
        assert torch.equal(*(state["action_value"] for state in states)) is alike
        actor.eval()


# -- Beyond The Rainbow ---------------------------------------------------------------------------------------------


def btr_loss(tau: float, alpha: float, **options: Any) -> QLearningLoss:
    torch.manual_seed(0)
    network = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=8, first_cosine=0)
    sizes = {"num_quantiles": 5, "num_target_quantiles": 6, "reuse_quantiles": True}
    shaping = Munchausen(alpha, clip_min=-0.3, **options)
    return QLearningLoss(
        QuantileQActor(network, spec=Categorical(3)), regularizer=Entropy(tau), shaping=shaping, **sizes
    )


def with_fractions(data: TensorDict, *, here: int = 32) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    sizes = {ONLINE: 5, HERE: here, NEXT: 6, DOUBLE: 32}
    return data.clone().update({k: torch.rand(len(data), n, generator=generator) for k, n in sizes.items()})


def test_btr_without_its_parts_is_iqn() -> None:
    data = with_fractions(transitions())
    btr = btr_loss(1e-7, 0.0, online=True)
    iqn = QLearningLoss(btr.value_network, num_quantiles=5, num_target_quantiles=6, reuse_quantiles=True)
    for loss in (btr, iqn):
        HardTargetUpdate(loss, period_updates=1)
    torch.testing.assert_close(btr(data.clone())["loss"], iqn(data.clone())["loss"])


def test_the_online_bonus_is_the_targets_until_they_part() -> None:
    """And then that of the online network's own quantiles at s, detached."""
    data = with_fractions(transitions(), here=5)
    data[HERE] = data[ONLINE]
    theirs, ours = (btr_loss(0.5, 0.5, online=online) for online in (False, True))
    for loss in (theirs, ours):
        HardTargetUpdate(loss, period_updates=1)
    torch.testing.assert_close(ours(data.clone())["loss"], theirs(data.clone())["loss"])
    with torch.no_grad():
        for p in (*ours.parameters(), *theirs.parameters()):
            p.mul_(1.5)
    assert not torch.allclose(ours(data.clone())["bonus"], theirs(data.clone())["bonus"])
    z = ours.value_network.quantile_network(data["observation"], data[ONLINE])
    log_pi = 0.5 * (z.mean(-2) / 0.5).log_softmax(-1).gather(-1, data["action"].unsqueeze(-1))
    assert ours(data.clone())["bonus"].item() == pytest.approx(0.5 * log_pi.clamp(min=-0.3).mean().item(), rel=1e-5)
    assert "kl" not in set(ours(data.clone()).keys())


def test_absolute_priority_of_quantiles() -> None:
    data = with_fractions(transitions())
    loss = btr_loss(0.5, 0.0, online=True)
    loss.head.absolute_priority = True
    HardTargetUpdate(loss, period_updates=1)
    written = data.clone()
    loss(written)
    network, terminated = loss.value_network.quantile_network, data["next", "terminated"]
    z = network(data["observation"], data[ONLINE]).gather(-1, data["action"].view(-1, 1, 1).expand(-1, 5, 1))
    following = network(data["next", "observation"], data[NEXT])
    log_pi = (following.mean(-2) / 0.5).log_softmax(-1)
    soft = ((following - 0.5 * log_pi.unsqueeze(-2)) * log_pi.exp().unsqueeze(-2)).sum(-1)
    values = data["next", "reward"] + 0.99 * soft * ~terminated
    expected = (values.unsqueeze(-2) - z).abs().mean(-1).sum(-1, keepdim=True)
    torch.testing.assert_close(written["td_error"], expected.detach(), atol=1e-5, rtol=1e-5)


def quantiles_at(first: int, fractions: Tensor) -> Tensor:
    torch.manual_seed(0)
    net = ImplicitQuantileNetwork(nn.Linear(4, 6), num_features=6, num_actions=2, num_cosines=3, first_cosine=first)
    x = torch.ones(1, 4)
    cosines = torch.cos(math.pi * torch.arange(first, first + 3) * fractions.unsqueeze(-1))
    torch.testing.assert_close(net(x, fractions), net.head(net.torso(x).unsqueeze(-2) * net.embedding(cosines).relu()))
    return net(x, fractions)


def test_cosines_from_zero_or_one() -> None:
    fractions = torch.tensor([[0.1, 0.6]])
    assert not torch.allclose(quantiles_at(0, fractions), quantiles_at(1, fractions))
