"""Prioritized replay: the law of its draws, its weights, and TorchRL's own trees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler

from torchrl_reg.training.loop.prioritized import StratifiedSampler
from torchrl_reg.training.loop.replay import TransitionStorage, draw_minibatches

PRIORITIES = torch.tensor([0.1, 2.0, 0.5, 0.0, 4.0, 1.0])


def filled(
    alpha: float, beta: float = 0.0, batch_size: int = 64, cls: type = StratifiedSampler
) -> TensorDictReplayBuffer:
    sampler = cls(8, alpha, beta)
    generator = torch.Generator().manual_seed(0)
    replay = TensorDictReplayBuffer(
        storage=TransitionStorage(8), sampler=sampler, batch_size=batch_size, generator=generator
    )
    replay.extend(TensorDict({"number": torch.arange(6)}, [6]))
    replay.update_priority(torch.arange(6), PRIORITIES)
    return replay


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_law_of_the_draws(alpha: float) -> None:
    drawn = torch.cat([rows["number"] for rows in draw_minibatches(filled(alpha), 2_000)])
    expected = (PRIORITIES + 1e-8) ** alpha
    shares = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(shares, expected / expected.sum(), atol=2e-3, rtol=0)


def test_one_row_from_each_of_equal_masses() -> None:
    replay = filled(0.0, batch_size=6)
    for rows in draw_minibatches(replay, 20):
        assert rows["number"].tolist() == list(range(6))
    assert len(next(draw_minibatches(filled(0.5, batch_size=1), 1))) == 1


def test_each_mass_has_a_random_number_of_its_own() -> None:
    """Three masses of two rows each: any of the two, whatever the others."""
    seen = {tuple((rows["number"] % 2).tolist()) for rows in draw_minibatches(filled(0.0, batch_size=3), 200)}
    assert len(seen) == 8


def test_weights_undo_the_priorities() -> None:
    """``(N P)^-beta`` over the minibatch's largest: at beta 1 a row counts as often as it should be drawn."""
    replay = filled(0.5, beta=0.7)
    replay.update_priority(torch.tensor([3]), torch.tensor([0.3]))
    rows = next(draw_minibatches(replay, 1))
    p = PRIORITIES.index_put((torch.tensor([3]),), torch.tensor(0.3))[rows["index"]].sqrt()
    torch.testing.assert_close(rows["priority_weight"], p**-0.7 / (p**-0.7).max(), atol=1e-5, rtol=1e-4)
    replay.sampler.beta = 1.0
    rows = next(draw_minibatches(replay, 1))
    product = rows["priority_weight"] * torch.as_tensor(replay.sampler._sum_tree[rows["index"]])
    assert product.std() < 1e-6


@pytest.mark.parametrize(
    ("alpha", "beta", "exponent"),
    [(0.2, 0.0, 0.2), (0.2, 0.2, 0.16), (0.5, 0.5, 0.25), (0.5, 1.0, 0.0)],  # BTR's two releases, Dopamine, corrected
)
def test_rows_count_by_their_priority_to_the_power_alpha_times_one_minus_beta(alpha, beta, exponent) -> None:
    replay, counted = filled(alpha, beta), torch.zeros(6)
    replay.update_priority(torch.tensor([3]), torch.tensor([0.3]))
    for rows in draw_minibatches(replay, 1_000):
        counted.index_add_(0, rows["number"], rows["priority_weight"])
    x, y = PRIORITIES.index_put((torch.tensor([3]),), torch.tensor(0.3)).log(), counted.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(exponent, abs=0.01)


def test_new_rows_have_the_largest_priority_so_far() -> None:
    replay = filled(1.0, batch_size=4096)
    replay.extend(TensorDict({"number": torch.tensor([6])}, [1]))
    shares = replay.sample()["number"].bincount(minlength=7) / 4096
    assert shares[6].item() == pytest.approx(shares[4].item(), abs=2e-3) and shares[6] > 0.3


def test_the_trees_are_torchrls() -> None:
    ours, theirs = (filled(0.6, cls=cls) for cls in (StratifiedSampler, PrioritizedSampler))
    for replay in (ours, theirs):
        replay.update_priority(torch.tensor([5, 1]), torch.tensor([[7.0], [0.2]]))
        replay.extend(TensorDict({"number": torch.tensor([6, 7, 8])}, [3]))
    leaves = torch.arange(8)
    for tree in ("_sum_tree", "_min_tree"):
        mine, other = (torch.as_tensor(getattr(r.sampler, tree)[leaves]) for r in (ours, theirs))
        torch.testing.assert_close(mine, other)
    assert ours.sampler.default_priority == theirs.sampler.default_priority == 7.0
    theirs.sampler.load_state_dict(ours.sampler.state_dict())
    assert theirs.sampler._max_priority == ours.sampler._max_priority


@pytest.mark.parametrize(
    ("index", "priority", "sentence"),
    [
        (torch.tensor([2, 1]), torch.tensor([0.5, torch.nan]), "priority must be finite and >= 0, got nan"),
        (torch.tensor([2]), torch.tensor([[-1.0]]), "priority must be finite and >= 0, got -1.0"),
        (2, torch.inf, "priority must be finite and >= 0, got inf"),
        (torch.tensor([2, 8]), torch.tensor([0.5, 0.5]), "index must be below the capacity of 8, got 8"),
        (10**7, 0.5, "index must be below the capacity of 8, got 10000000"),
    ],
)
def test_what_the_trees_cannot_hold_is_refused(index: Any, priority: Any, sentence: str) -> None:
    replay = filled(0.5)
    with pytest.raises(ValueError, match=sentence):
        replay.sampler.update_priority(index, priority)
    kept = torch.as_tensor(replay.sampler._sum_tree[torch.arange(6)])
    torch.testing.assert_close(kept, (PRIORITIES + 1e-8).sqrt())


def test_other_storages_and_indices_are_torchrls_own() -> None:
    sampler = StratifiedSampler(8, 0.5, 0.5)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(8), sampler=sampler, batch_size=3)
    with pytest.raises(RuntimeError, match="empty storage"):
        replay.sample()
    replay.add(TensorDict({"number": torch.tensor(1)}))
    replay.update_priority(0, 3.0)
    sampler.update_priority(torch.tensor([-1, 0]), torch.tensor([9.0, 2.0]))
    assert sampler.default_priority == 3.0 and replay.sample()["number"].tolist() == [1, 1, 1]
