"""A temperature with a guarantee in losses: its k, the rewards it sees, scaled rewards, compiled and stacked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor

from torchrl_reg.modules import BoltzmannQActor
from torchrl_reg.objectives import (
    DiscreteVIRELLoss,
    HardTargetUpdate,
    MunchausenDQNLoss,
    QLearningLoss,
    SoftDQNLoss,
    SparseDQNLoss,
)
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import Entropy, GuaranteedTemperature, PriorKL
from torchrl_reg.tabular import random_mdp

LOSS = "loss<=10%"


def actor(spec: Any = None) -> QValueActor:
    return QValueActor(nn.Linear(4, 3), spec=Categorical(3) if spec is None else spec)


MADE: dict[str, tuple[Any, float]] = {
    "soft_dqn": (lambda: SoftDQNLoss(actor(OneHot(3)), tau=LOSS), math.log(3)),
    "m_dqn": (lambda: MunchausenDQNLoss(actor(), tau=LOSS), math.log(3)),
    "sparse_dqn": (lambda: SparseDQNLoss(actor(), tau=LOSS), 1 / 3),
    "prior": (lambda: QLearningLoss(actor(), regularizer=PriorKL(LOSS, prior=[0.5, 0.3, 0.2])), -math.log(0.2)),
    "own k": (lambda: SoftDQNLoss(actor(), tau=GuaranteedTemperature(0.1, cost_range=0.7)), 0.7),
    "no spec": (
        lambda: SoftDQNLoss(
            nn.Linear(4, 3), action_space="categorical", tau=GuaranteedTemperature(0.1, cost_range=0.7)
        ),
        0.7,
    ),
}


def collected(rewards: list[float], ended: list[bool], **more: Any) -> TensorDict:
    flags = torch.tensor(ended).unsqueeze(-1)
    following = {"reward": torch.tensor(rewards).unsqueeze(-1), "done": torch.ones_like(flags), "terminated": flags}
    return TensorDict({"next": following | more}, [len(rewards)])


@pytest.mark.parametrize("name", MADE)
def test_the_k_of_each_loss_and_the_rewards_it_sees(name: str) -> None:
    make, k = MADE[name]
    loss = make().make_value_estimator(gamma=0.9)
    assert float(loss.tau) == GuaranteedTemperature.least
    sampled = BoltzmannQActor(actor(), regularizer=loss.regularizer)
    loss.observe_rewards(collected([2.0, 5.0], [False, False]))  # truncated: no 0 follows
    assert float(loss.tau) == pytest.approx(0.1 * 3.0 / k, rel=1e-14)
    loss.observe_rewards(collected([2.0, 5.0], [True, False]))
    assert float(loss.tau) == pytest.approx(0.1 * 5.0 / k, rel=1e-14) and sampled.tau is loss.tau


def test_other_keys_and_losses_without_one() -> None:
    loss = SoftDQNLoss(actor(), tau=LOSS)
    loss.set_keys(reward="paid")
    loss.observe_rewards(collected([0.0, 0.0], [False, False], paid=torch.tensor([[1.0], [3.0]])))
    assert float(loss.tau) == pytest.approx(0.1 * 2.0 / math.log(3))
    fixed = SoftDQNLoss(actor(), tau=0.5)
    fixed.observe_rewards(TensorDict())  # not even read
    assert float(fixed.tau) == 0.5


def test_rows_that_do_not_count_are_not_seen() -> None:
    loss, data = SoftDQNLoss(actor(), tau=LOSS), collected([2.0, 5.0, 99.0], [False, False, True])
    data["collector", "mask"] = torch.tensor([True, True, False]).unsqueeze(-1)
    loss.observe_rewards(data)
    assert float(loss.tau) == pytest.approx(0.1 * 3.0 / math.log(3))


@pytest.mark.parametrize("masked", [False, True])
def test_rollouts_whose_targets_are_made_later(masked: bool) -> None:
    loss = QLearningLoss(actor(), regularizer=Entropy(LOSS), delay_value=False)
    loss.make_value_estimator("regularized_qlambda", gamma=0.9, lmbda=0.5)
    data = torch.stack([collected([2.0, 5.0, 99.0], [False, False, masked]), collected([1.0, 4.0, 3.0], [False] * 3)])
    if masked:
        data["collector", "mask"] = torch.tensor([[True, True, False], [True] * 3]).unsqueeze(-1)
    loss.observe_rewards(data)
    assert float(loss.tau) == pytest.approx(0.1 * (4.0 if masked else 98.0) / math.log(3))


def test_what_is_refused() -> None:
    with pytest.raises(
        ValueError, match="value_network must have a spec that tells the number of actions where tau is"
    ):
        SoftDQNLoss(nn.Linear(4, 3), action_space="categorical", tau=LOSS)
    with pytest.raises(ValueError, match="cost_range must be a finite number > 0 .*: with one action"):
        SoftDQNLoss(QValueActor(nn.Linear(4, 1), spec=Categorical(1)), tau=LOSS)
    with pytest.raises(ValueError, match="high must be given its cost_range first"):
        GuaranteedTemperature(LOSS, name="high").observe_rewards(torch.ones(1))


def q_tables(scale: float, tau: Any, kind: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tables ``[S, A]`` and the policies at them, as a linear network learns them by SGD from scaled rewards."""
    mdp = random_mdp(6, 3, 0.9, seed=4)
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    loss = kind(QValueActor(net, spec=Categorical(3)), tau=tau, loss_function="l2").make_value_estimator(gamma=0.9)
    target, optimizer = HardTargetUpdate(loss, period_updates=1), torch.optim.SGD(loss.parameters(), lr=0.5)
    tables, policies = [], []
    for _ in range(60):
        state, action = (torch.randint(n, (16,), generator=generator) for n in (6, 3))
        following = torch.multinomial(mdp.P[state, action], 1, generator=generator).squeeze(-1)
        eye, ended = torch.eye(6, dtype=torch.float64), torch.zeros(16, 1, dtype=torch.bool)
        reward = scale * mdp.r[state, action].unsqueeze(-1)
        after = {"observation": eye[following], "reward": reward, "done": ended, "terminated": ended}
        data = TensorDict({"observation": eye[state], "action": action, "next": after}, [16])
        loss.observe_rewards(data)
        optimizer.zero_grad()
        loss(data)["loss"].backward()
        optimizer.step()
        target.step()
        tables.append(net.weight.detach().T.clone())
        policies.append(loss.regularizer.policy(tables[-1]))
    return tables, policies


@pytest.mark.parametrize("kind", [SoftDQNLoss, SparseDQNLoss])
@pytest.mark.parametrize("scale", [0.1, 10.0, 100.0])
def test_scaled_rewards_change_no_policy(kind: Any, scale: float) -> None:
    (tables, policies), (scaled, others) = q_tables(1.0, LOSS, kind), q_tables(scale, LOSS, kind)
    for table, other, policy, again in zip(tables, scaled, policies, others, strict=True):
        torch.testing.assert_close(other, scale * table, rtol=1e-9, atol=1e-9 * scale)
        torch.testing.assert_close(again, policy, rtol=1e-7, atol=1e-9)
        assert torch.equal(again.argmax(-1), policy.argmax(-1))
    assert (policies[-1] - q_tables(scale, 0.2, kind)[1][-1]).abs().max() > 0.05  # but that of a fixed one, they do


def test_a_power_of_two_changes_no_bit() -> None:
    (tables, policies), (scaled, others) = (q_tables(scale, LOSS, SoftDQNLoss) for scale in (1.0, 8.0))
    assert all(torch.equal(8 * one, other) for one, other in zip(tables, scaled, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(policies, others, strict=True))


@pytest.mark.slow
def test_a_compiled_loss_follows_without_recompilation(batch: Any) -> None:
    torch._dynamo.reset()
    loss = SoftDQNLoss(actor(), tau=LOSS).make_value_estimator(gamma=0.9)
    HardTargetUpdate(loss, period_updates=1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, top in enumerate((0.0, 1.0, 30.0)):
            loss.observe_rewards(collected([0.0, top], [False, False]))
            data = batch(9, seed=seed)
            torch.testing.assert_close(compiled(data.copy())["loss"], loss(data.copy())["loss"])
    assert float(loss.tau) == pytest.approx(3.0 / math.log(3))


def test_nothing_is_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, data = SoftDQNLoss(actor(), tau=LOSS), collected([1.0, 2.0], [True, False])

    def refuse(*_: Any) -> None:
        raise AssertionError("this waits for the device")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(Tensor, name, refuse)
    loss.observe_rewards(data)


def test_losses_whose_temperatures_differ_are_not_stacked() -> None:
    losses = [SoftDQNLoss(actor(), tau=LOSS).make_value_estimator(gamma=0.9) for _ in range(2)]
    with pytest.raises(ValueError, match="coefficients that are not learnt"):
        StackedLoss(losses)


def test_discrete_virel_stays_below_its_bound(batch: Any) -> None:
    loss = DiscreteVIRELLoss(actor(), beta_scale=50.0, rate=1.0, tau_max="loss<=5%").make_value_estimator(gamma=0.9)
    HardTargetUpdate(loss, period_updates=1)
    data = batch(9, seed=0)
    loss.observe(loss(data))
    free = float(loss.tau)
    loss.observe_rewards(data)
    seen = [*data["next", "reward"].flatten().tolist(), *([0.0] if data["next", "terminated"].any() else [])]
    bound = 0.05 * (max(seen) - min(seen)) / math.log(3)
    assert free > bound and float(loss.tau) == pytest.approx(bound, rel=1e-6)
    loss.observe(loss(data))
    assert float(loss.tau) == pytest.approx(bound, rel=1e-6)
    with pytest.raises(ValueError, match="tau_max must be"):
        DiscreteVIRELLoss(actor(), beta_scale=0.1, tau_max="loss<=0%")
