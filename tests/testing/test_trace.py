"""What is seen of the operations of a loss."""

from __future__ import annotations

import torch

from torchrl_reg.testing.trace import Trace


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


def test_random_numbers_are_a_half() -> None:
    with Trace():
        assert torch.rand(2, 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert torch.rand(50).std() > 0


def test_or_a_quarter_and_three_quarters_in_turn() -> None:
    with Trace(spread=True) as trace:
        assert torch.rand(2, 3).tolist() == [[0.25, 0.75, 0.25], [0.75, 0.25, 0.75]] and not trace.odd
        assert torch.rand(3, dtype=torch.float64).tolist() == [0.25, 0.75, 0.25] and trace.odd
