"""Tables as networks, reading a loss over them, and tracing its operations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torchrl.objectives import DistributionalDQNLoss, DQNLoss, LossModule
from wrong_losses import DQN

from torchrl_reg.testing import CheckError, check_loss
from torchrl_reg.testing.checks import transitions
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, SUPPORT, Probe, Trace, built, networks, seeded
from torchrl_reg.testing.targets import Values

Q = torch.randn(2, NUM_STATES, NUM_ACTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("head", ["expected", "categorical", "quantiles", "implicit"])
def test_a_table_says_its_values(head: str) -> None:
    probe = Probe(DQN(*networks(head, own=True, dtype=torch.float64)), head, torch.float64)
    probe.set(Values(Q[0], Q[1]))
    data = probe.data(transitions(torch.Generator().manual_seed(0), n_step=False)[0])
    for network, q in ((probe.loss.q_network, Q[0]), (probe.loss.target_network, Q[1])):
        said = network(data.select("observation"))["action_value"]
        torch.testing.assert_close(said, q[data["observation"].argmax(-1)])


def test_quantiles_are_lines() -> None:
    widths = Q[0].abs()
    for head, fractions in (("quantiles", [0.125, 0.375, 0.625, 0.875]), ("implicit", [0.25, 0.75])):
        (network,) = networks(head, own=True, dtype=torch.float64)
        probe = Probe(DQN(network), head, torch.float64)
        probe.set(Values(Q[0], Q[1]), widths)
        said = torch.eye(NUM_STATES).double()
        levels = torch.tensor(fractions).double()
        quantiles = network.module[0].module
        z = quantiles.outputs(said) if head == "quantiles" else quantiles.network(said, levels.expand(NUM_STATES, -1))
        torch.testing.assert_close(z, Q[0].unsqueeze(1) + (4 * levels.view(-1, 1) - 2) * widths.unsqueeze(1))


def test_logarithms_of_probabilities_have_the_means_of_the_table() -> None:
    (network,) = networks("categorical", own=False, dtype=torch.float64)
    probe = Probe(DQN(network), "categorical", torch.float64)
    probe.set(Values(Q[0], Q[1]))
    said = network(observation=torch.eye(NUM_STATES).double())[1]
    torch.testing.assert_close((said.exp() * SUPPORT.unsqueeze(-1)).sum(-2), Q[0])


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_the_mean_of_a_categorical_target_is_read_from_a_gradient() -> None:
    over = networks("categorical", own=False, dtype=torch.float32)
    probe = Probe(built(DistributionalDQNLoss, over, {"gamma": 0.9}), "categorical", torch.float32)
    probe.copies = 2
    probe.set(Values(Q[0], Q[1]))
    rows, _ = transitions(torch.Generator().manual_seed(0), n_step=False)
    some = rows[:5]
    greedy = Q[0][some.next_s].argmax(-1)
    expected = some.r + 0.9 * Q[1][some.next_s, greedy]  # Double Q-learning, as TorchRL has it
    torch.testing.assert_close(probe.mean_targets(some, Q[0], probe.read(some)), expected, rtol=1e-5, atol=1e-5)
    assert SUPPORT.mean().abs() < 1e-12


def test_one_loss_of_each_row() -> None:
    probe = Probe(DQN(*networks("expected", own=False, dtype=torch.float64)), "expected", torch.float64)
    probe.set(Values(Q[0], Q[1]))
    rows, _ = transitions(torch.Generator().manual_seed(0), n_step=False)
    reading = probe.read(rows[:4])
    y = rows.r[:4] + 0.9 * Q[1][rows.next_s[:4]].amax(-1)
    torch.testing.assert_close(reading.loss, (Q[0][rows.s[:4], rows.a[:4]] - y).square())
    torch.testing.assert_close(probe.value(probe.data(rows[:4])).detach(), reading.loss.mean())
    torch.testing.assert_close(probe.gradient(probe.data(rows[:4])), reading.grad.mean(0))
    assert reading[1:3].loss.tolist() == reading.loss[1:3].tolist()


def test_no_target_network_is_no_error() -> None:
    def make(network: Any) -> Any:
        loss = DQNLoss(network, delay_value=False)
        loss.make_value_estimator(gamma=0.9)
        return loss

    report = check_loss(make, method="dqn", gamma=0.9)
    assert report.passed and report.errors == [], str(report)


class Unnamed(LossModule):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.old = network, copy.deepcopy(network)


class Without(LossModule):
    def __init__(self, network: Any) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("cls", "message"), [(Unnamed, "got 2 of them"), (Without, "got 0 of them hold the table .no name")]
)
def test_a_loss_whose_networks_cannot_be_told_apart(cls: Any, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check_loss(cls, method="dqn")


def test_random_numbers_of_the_caller_stay() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded():
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


# -- operations -----------------------------------------------------------------------------------------------------


def test_clips_with_both_bounds() -> None:
    x = torch.tensor([-2.0, 0.5])
    with Trace() as trace:
        x.clamp(-1, 0), x.clamp(min=-0.4, max=1), torch.clip(x, -0.3, 2), x.clamp(min=-0.2), x.clone().clamp_(-0.1, 3)
    assert trace.clips_above_zero(-1.0) is None
    assert trace.clips_above_zero(-0.4) == 1.0
    assert trace.clips_above_zero(-0.3) == 2.0
    assert trace.clips_above_zero(-0.2) is None
    assert trace.clips_above_zero(-0.1) == 3.0


def test_one_bound_after_the_other() -> None:
    x, low, high = torch.tensor([-2.0]), torch.tensor(-0.3), torch.tensor(2.0)
    with Trace() as trace:
        x.clamp_min(-0.4).clamp_max(1), torch.minimum(torch.maximum(x, low), high), x.clamp(max=3.0).clamp(min=-0.2)
        x.clamp(min=-0.1) + x.clamp(max=1), torch.maximum(x, torch.zeros(2))
    assert [trace.clips_above_zero(low) for low in (-0.4, -0.3, -0.2, -0.1)] == [1.0, 2.0, 3.0, None]


def test_softmaxes_are_known_up_to_a_shift() -> None:
    q = torch.tensor([[0.3, -1.0, 2.0]])
    for softmax in (torch.softmax, torch.log_softmax, torch.logsumexp, lambda x, _: x.exp()):
        with Trace() as trace:
            softmax(q - 5, -1)
        assert trace.softmax_of(q[0].double()) and not trace.softmax_of(2 * q[0].double())
        with Trace() as trace:
            softmax(q / 0.5, -1)
        assert not trace.softmax_of(q[0].double())


def test_traced_random_numbers_are_a_half() -> None:
    with Trace():
        assert torch.rand(2, 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert torch.rand(50).std() > 0


def test_traced_random_numbers_are_a_quarter_and_three_quarters_in_turn() -> None:
    with Trace(spread=True) as trace:
        assert torch.rand(2, 3).tolist() == [[0.25, 0.75, 0.25], [0.75, 0.25, 0.75]] and not trace.odd
        assert torch.rand(3, dtype=torch.float64).tolist() == [0.25, 0.75, 0.25] and trace.odd
