"""Stacked losses equal the single ones, and changes to one of them reach the stack."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.compat import unchecked_tensordict
from torchrl_reg.modules import MinAtarCNN
from torchrl_reg.objectives import MunchausenDQNLoss, MunchausenIQNLoss, QLearningLoss
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import BellmanErrorCoefficient, Entropy, PriorKL, Tsallis

STACKABLE = ["soft_dqn", "m_dqn", "al", "pal", "c51", "m_c51", "qr", "qr_double", "sparse", "soft_double"]
STACKABLE += ["iqn_double", "m_iqn", "m_iqn_reuse", "m_iqn_shared"]  # with the same random numbers
COUNT = 3
NUM_OBSERVATIONS, NUM_ACTIONS = 4, 3  # those of the fixtures


def stacked(each: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([found[name] for found in each]) for name in each[0]}


def assert_as_alone(losses: Any, batches: Any, stack: StackedLoss | None = None) -> StackedLoss:
    outs, gradients, fractions = [], [], []
    for seed, (loss, data) in enumerate(zip(losses, batches, strict=True)):
        torch.manual_seed(seed)
        fractions.append(loss.sample_fractions(len(data)))
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        outs.append(dict(loss(data.copy()).items()))
        assert torch.equal(torch.get_rng_state(), state)  # as many were sampled
        gradients.append(torch.autograd.grad(outs[-1]["loss"], list(loss.parameters())))
    stack, data = stack or StackedLoss(losses), torch.stack(batches).contiguous()
    out = dict(stack.loss(unchecked_tensordict({**dict(data.items()), **stacked(fractions)}, data.batch_size)).items())
    found = {name: value.expand(len(losses)) if value.ndim == 0 else value for name, value in out.items()}
    wholes = [stack.parameter(parameter) for parameter in losses[0].parameters()]
    whole = [*torch.autograd.grad(out["loss"].sum(), wholes)]
    together = [*map(torch.stack, zip(*gradients, strict=True))]
    torch.testing.assert_close((found, whole), (stacked(outs), together), rtol=1e-11, atol=1e-11)
    assert stack.loss(data)["loss"].shape == (len(losses),)  # an ensemble may draw in the pass
    return stack


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
        return MunchausenDQNLoss(actor, tau=0.5, alpha=0.5, clip_min=-0.3, delay_value=False).double()

    batches = [batch(5, seed=seed, dtype=torch.float64) for seed in range(COUNT)]
    for data in batches:
        for at in (data, data["next"]):
            at["observation"] = torch.rand(5, 4, 10, 10, dtype=torch.float64)
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
    for stale in (losses, [losses[0], copy.deepcopy(losses[0]), losses[1]]):
        with pytest.raises(ValueError, match="must agree in regularizer.tau_coefficient.current, got 0.5.* and 0.4"):
            StackedLoss(stale)


def network(*layers: nn.Module) -> QValueActor:
    return QValueActor(nn.Sequential(*layers), spec=Categorical(NUM_ACTIONS))


def munchausen(*layers: nn.Module, **how: Any) -> MunchausenDQNLoss:
    return MunchausenDQNLoss(network(*layers, nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS)), **how)


def q_learning(**how: Any) -> QLearningLoss:
    return QLearningLoss(network(nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS)), **how)


REFUSED = {
    "a layer": lambda: munchausen(nn.PReLU(NUM_OBSERVATIONS)),
    "groups": lambda: munchausen(nn.Conv2d(4, 8, 3, groups=2), nn.Tanh()),
    "padding by reflection": lambda: munchausen(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.Tanh()),
    "a reduction": lambda: munchausen(reduction="sum"),
    "a prior": lambda: q_learning(regularizer=PriorKL(0.1)),
    "a learnt coefficient": lambda: q_learning(regularizer=Entropy(BellmanErrorCoefficient(0.5, rate=0.1, name="tau"))),
    "lambda-returns": lambda: munchausen().make_value_estimator("tdlambda", gamma=0.9),
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


#: What differs, and the two losses that do.
DIFFERENT = {
    "loss_function": (munchausen, lambda: munchausen(loss_function="l1")),
    "weight_reduction": (munchausen, lambda: munchausen(weight_reduction="mean")),
    "value_network": (munchausen, lambda: munchausen(nn.Tanh())),
    "double_dqn": (q_learning, lambda: q_learning(double_dqn=True)),
    "delay_value": (munchausen, lambda: munchausen(delay_value=False)),
    "tensor_keys": (munchausen, lambda: renamed(munchausen())),
    "dtype": (munchausen, lambda: munchausen().double()),
    "value_estimator": (munchausen, lambda: munchausen().make_value_estimator("regularized_qlambda")),
    "regularizer": (lambda: q_learning(regularizer=Tsallis(0.5)), lambda: q_learning(regularizer=Tsallis(0.5, q=1.5))),
}


def renamed(loss: Any) -> Any:
    loss.set_keys(reward="other")
    return loss


@pytest.mark.parametrize("name", DIFFERENT)
def test_losses_that_differ_are_refused(name: str) -> None:
    first, other = (make() for make in DIFFERENT[name])
    for losses in ([first, other], [first, copy.deepcopy(first), other]):  # all of them, not the first two
        with pytest.raises(ValueError, match=f"losses must agree in {name}, got"):
            StackedLoss(losses)
    with pytest.raises(ValueError, match="losses must be one or more, got none"):
        StackedLoss([])
