"""Losses stacked into one are each what they were, and what is done to one of them is done to the stack."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.modules import MinAtarCNN
from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, MunchausenIQNLoss, QLearningLoss
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import BellmanErrorCoefficient, Entropy, PriorKL, Tsallis
from torchrl_reg.torchrl_compat import unchecked_tensordict

STACKABLE = ("soft_dqn", "m_dqn", "al", "pal", "c51", "m_c51", "qr", "qr_double", "sparse", "soft_double")
COUNT = 3
NUM_OBSERVATIONS, NUM_ACTIONS = 4, 3  # those of the fixtures


def implicit(cases: Any, seed: int, *, double: bool = False, **options: Any) -> QLearningLoss:
    actor = cases["m_iqn"].actor(seed=seed)
    options |= {"num_quantiles": 5, "num_target_quantiles": 7, "num_policy_quantiles": 4}
    if double:
        made = QLearningLoss(actor, regularizer=Entropy(0.5), double_dqn=True, **options)
    else:
        made = MunchausenIQNLoss(actor, tau=0.5, alpha=0.5, clip_min=-0.3, **options)
    HardTargetUpdate(made, period_updates=5)
    return made


def parameters(losses: Any) -> list[list[nn.Parameter]]:
    return [list(loss.parameters()) for loss in losses]


def alone(losses: Any, batches: Any) -> list[tuple[dict[str, torch.Tensor], list[torch.Tensor]]]:
    found = []
    for loss, data in zip(losses, batches, strict=True):
        out = dict(loss(data).items())
        found.append((out, list(torch.autograd.grad(out["loss"], list(loss.parameters())))))
    return found


def assert_as_alone(losses: Any, batches: Any, stack: StackedLoss | None = None) -> StackedLoss:
    expected = alone(losses, [data.copy() for data in batches])
    stack = stack or StackedLoss(losses)
    data = torch.stack(batches)
    out = dict(stack.loss(data).items())
    assert out.keys() == expected[0][0].keys()
    for name, value in out.items():
        found = value.expand(len(losses)) if value.ndim == 0 else value
        torch.testing.assert_close(found, torch.stack([each[0][name] for each in expected]), rtol=1e-12, atol=1e-12)
    wholes = [stack.parameter(parameter) for parameter in losses[0].parameters()]
    gradients = torch.autograd.grad(out["loss"].sum(), wholes)
    for position, gradient in enumerate(gradients):
        together = torch.stack([each[1][position] for each in expected])
        torch.testing.assert_close(gradient, together, rtol=1e-11, atol=1e-11)
    return stack


def test_losses_that_draw_are_each_what_they_are_with_the_same_numbers(cases: Any, batch: Any) -> None:
    for options in ({}, {"reuse_quantiles": True}, {"share_fractions": True}, {"double": True}):
        losses = [implicit(cases, seed, **options).double() for seed in range(COUNT)]
        batches = [batch(6, seed=seed, dtype=torch.float64) for seed in range(COUNT)]
        handed_out, expected = [], []
        for seed, (loss, data) in enumerate(zip(losses, batches, strict=True)):
            torch.manual_seed(seed)
            handed_out.append(loss.drawn(6))
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            ((out, gradients),) = alone([loss], [data.copy()])
            assert torch.equal(torch.get_rng_state(), state)  # as many were drawn
            expected.append((out["loss"], gradients))
        stack, data = StackedLoss(losses), torch.stack(batches).contiguous()
        rows = {name: torch.stack([drawn[name] for drawn in handed_out]) for name in handed_out[0]}
        out = stack.loss(unchecked_tensordict({**dict(data.items()), **rows}, data.batch_size))
        torch.testing.assert_close(out["loss"], torch.stack([loss for loss, _ in expected]), rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(out["loss"].sum(), [stack.parameter(p) for p in losses[0].parameters()])
        for position, gradient in enumerate(found):
            together = torch.stack([gradients[position] for _, gradients in expected])
            torch.testing.assert_close(gradient, together, rtol=1e-11, atol=1e-11)
        assert stack.loss(data)["loss"].shape == (COUNT,)  # an ensemble may draw in the pass


@pytest.mark.parametrize("name", STACKABLE)
@pytest.mark.parametrize("rows", [1, 6])
def test_each_is_what_it_was(cases: Any, batch: Any, name: str, rows: int) -> None:
    case = cases[name]
    losses = [case.loss(case.actor(seed=seed)).double() for seed in range(COUNT)]
    batches = [batch(rows, seed=seed, dtype=torch.float64) for seed in range(COUNT)]
    stack = assert_as_alone(losses, batches)
    first = batches[0].set("steps_to_next_obs", torch.full((rows, 1), 3))
    others = [data.set("steps_to_next_obs", torch.randint(1, 4, (rows, 1))) for data in batches[1:]]
    assert_as_alone(losses, [first, *others], stack)


def test_images(batch: Any) -> None:
    def loss(seed: int) -> MunchausenDQNLoss:
        torch.manual_seed(seed)
        net = nn.Sequential(MinAtarCNN(4), nn.Linear(1024, NUM_ACTIONS))
        actor = QValueActor(net, spec=Categorical(NUM_ACTIONS))
        made = MunchausenDQNLoss(actor, tau=0.5, alpha=0.5, clip_min=-0.3).double()
        HardTargetUpdate(made, period_updates=5)
        return made

    batches = [batch(5, seed=seed, dtype=torch.float64) for seed in range(COUNT)]
    for data in batches:
        data["observation"] = torch.rand(5, 4, 10, 10, dtype=torch.float64)
        data["next", "observation"] = torch.rand(5, 4, 10, 10, dtype=torch.float64)
    assert_as_alone([loss(seed) for seed in range(COUNT)], batches)


def test_what_is_done_to_one_is_done_to_the_stack(cases: Any, batch: Any) -> None:
    case = cases["m_dqn"]
    losses = [case.loss(case.actor(seed=seed)).double() for seed in range(COUNT)]
    batches = [batch(6, seed=seed, dtype=torch.float64) for seed in range(COUNT)]
    stack = assert_as_alone(losses, batches)
    before = stack.loss(torch.stack(batches))["loss"].detach()
    losses[1].load_state_dict(case.loss(case.actor(seed=9)).double().state_dict())
    with torch.no_grad():
        for parameter in losses[2].parameters():
            parameter.add_(0.1)
    after = stack.loss(torch.stack(batches))["loss"].detach()
    assert torch.equal(after[0], before[0]) and (after[1:] != before[1:]).all()
    assert_as_alone(losses, batches, stack)
    # Stacked anew, two of them: the third keeps its numbers.
    kept = [parameter.clone() for parameter in losses[0].parameters()]
    assert_as_alone(losses[1:], batches[1:])
    assert all(torch.equal(a, b) for a, b in zip(kept, losses[0].parameters(), strict=True))


def test_a_scheduled_coefficient_outdates_the_stack(cases: Any) -> None:
    losses = [cases["m_dqn"].loss() for _ in range(2)]
    stack = StackedLoss(losses)
    assert stack.is_current()
    losses[1].tau = 0.4
    assert not stack.is_current()
    with pytest.raises(ValueError, match="losses must agree in regularizer.tau_coefficient.current, got 0.5.* and 0.4"):
        StackedLoss([losses[0], copy.deepcopy(losses[0]), losses[1]])
    with pytest.raises(
        ValueError, match=r"losses must agree in regularizer.tau_coefficient.current, got 0.5.* and 0.4"
    ):
        StackedLoss(losses)


def network(*layers: nn.Module) -> QValueActor:
    return QValueActor(nn.Sequential(*layers), spec=Categorical(NUM_ACTIONS))


def linear() -> nn.Linear:
    return nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS)


REFUSED = {
    "a layer": lambda: MunchausenDQNLoss(network(nn.PReLU(NUM_OBSERVATIONS), linear())),
    "groups": lambda: MunchausenDQNLoss(network(nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), linear())),
    "padding by reflection": lambda: MunchausenDQNLoss(
        network(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.Tanh(), linear())
    ),
    "a reduction": lambda: MunchausenDQNLoss(network(linear()), reduction="sum"),
    "a prior": lambda: QLearningLoss(network(linear()), regularizer=PriorKL(0.1)),
    "a learnt coefficient": lambda: QLearningLoss(
        network(linear()), regularizer=Entropy(BellmanErrorCoefficient(0.5, rate=0.1, name="tau"))
    ),
    "lambda-returns": lambda: MunchausenDQNLoss(network(linear())).make_value_estimator("tdlambda", gamma=0.9),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_refused(make: Any) -> None:
    losses = [make() for _ in range(2)]
    held = list(losses[0].parameters())
    before = [parameter.data_ptr() for parameter in held]
    with pytest.raises(ValueError, match="must (have|be)"):
        losses[0].stacked_with(losses[1:])
    assert [parameter.data_ptr() for parameter in held] == before  # left as they were


def test_many_fractions_and_other_classes_are_refused(cases: Any) -> None:
    many = [MunchausenIQNLoss(cases["m_iqn"].actor(seed=seed), num_target_quantiles=17) for seed in range(2)]
    with pytest.raises(ValueError, match="a head that can be stacked"):
        StackedLoss(many)
    with pytest.raises(ValueError, match="one class, got a SoftDQNLoss"):
        StackedLoss([cases["m_dqn"].loss(), cases["soft_dqn"].loss()])
    stranger = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"parameter must be one of the losses' networks, got one of shape \[3\]"):
        StackedLoss([cases["m_dqn"].loss(), cases["m_dqn"].loss()]).parameter(stranger)


def test_weights_and_masks_are_refused(cases: Any, batch: Any) -> None:
    stack = StackedLoss([cases["m_dqn"].loss(), cases["m_dqn"].loss()])
    data = torch.stack([batch(4).set("priority_weight", torch.rand(4)) for _ in range(2)])
    with pytest.raises(NotImplementedError, match="without weights and masks"):
        stack.loss(data)


def renamed() -> MunchausenDQNLoss:
    loss = MunchausenDQNLoss(network(linear()))
    loss.set_keys(reward="other")
    return loss


DIFFERENT = {
    "loss_function": lambda: MunchausenDQNLoss(network(linear()), loss_function="l1"),
    "value_network": lambda: MunchausenDQNLoss(network(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))),
    "double_dqn": lambda: QLearningLoss(network(linear()), double_dqn=True),
    "delay_value": lambda: MunchausenDQNLoss(network(linear()), delay_value=False),
    "tensor_keys": renamed,
    "dtype": lambda: MunchausenDQNLoss(network(linear())).double(),
    "regularizer": lambda: QLearningLoss(network(linear()), regularizer=Tsallis(0.5, q=1.5)),
}


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_losses_that_differ_are_refused(name: str) -> None:
    plain: Any = {
        "double_dqn": lambda: QLearningLoss(network(linear())),
        "regularizer": lambda: QLearningLoss(network(linear()), regularizer=Tsallis(0.5)),
    }
    first = plain.get(name, lambda: MunchausenDQNLoss(network(linear())))()
    with pytest.raises(ValueError, match=f"losses must agree in {name}, got"):
        StackedLoss([first, DIFFERENT[name]()])
    with pytest.raises(ValueError, match=f"losses must agree in {name}, got"):  # all of them, not the first two
        StackedLoss([first, copy.deepcopy(first), DIFFERENT[name]()])
    with pytest.raises(ValueError, match="losses must be one or more, got none"):
        StackedLoss([])
