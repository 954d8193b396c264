"""Replay: storage and samples equal TorchRL's, and rows are saved incrementally.

Prioritized replay: the law of its draws, its weights, and TorchRL's own trees.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler

from torchrl_reg.lab import UserError, make_replay
from torchrl_reg.lab.learners.frame_stack import FrameStackStorage
from torchrl_reg.lab.learners.replay import (
    StratifiedSampler,
    TransitionStorage,
    draw_minibatches,
    rows_in_time,
    select,
    store,
)
from torchrl_reg.lab.run import replay_chunks
from torchrl_reg.lab.run.replay_chunks import ReplayChunks


def buffer(capacity: int = 20, kind: Any = LazyTensorStorage, sampler: Any = None, **options) -> TensorDictReplayBuffer:
    storage = kind(capacity, **options)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=6, generator=torch.Generator())


def prioritized() -> TensorDictReplayBuffer:
    return buffer(sampler=PrioritizedSampler(20, 0.6, 0.4))


def rows(start: int, stop: int) -> TensorDict:
    numbers = torch.arange(start, stop)
    images = (numbers[:, None, None] + torch.arange(6).view(2, 3)).to(torch.uint8)
    following = {"observation": images + 1, "done": (numbers % 5 == 0).unsqueeze(-1)}
    return TensorDict({"observation": images, "action": numbers % 3, "next": following}, [stop - start])


def assert_same(one: TensorDict, other: TensorDict) -> None:
    assert one.batch_size == other.batch_size and one.device == other.device
    torch.testing.assert_close(one.to_dict(), other.to_dict(), rtol=0, atol=0)


def test_rows_that_bring_priorities_keep_them() -> None:
    stock, ours = prioritized(), prioritized()
    given = rows(0, 8).set("td_error", torch.arange(8.0))
    stock.extend(given.clone()), store(ours, given.clone())
    assert torch.equal(*(torch.as_tensor(b.sampler.state_dict()["_sum_tree"][torch.arange(8)]) for b in (stock, ours)))


# -- the storage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[8] * 20, [50, 50], [1, 49, 7, 50, 3], [60], [8]], ids=str)
def test_rows_samples_and_what_a_write_leaves_behind_are_those_of_torchrl(sizes: list[int]) -> None:
    stock, ours = buffer(50), buffer(50, TransitionStorage)
    written = 0
    for size in sizes:  # also around the end of the ring
        revision = ours.storage._mutation_revision
        for replay, write in ((stock, TensorDictReplayBuffer.extend), (ours, store)):
            write(replay, rows(written, written + size))
            replay._rng.manual_seed(written)
        written += size
        assert_same(stock.sample(), ours.sample())
        for index in (slice(3, 9), 0, torch.tensor([0]), -1, torch.tensor([-1]), torch.arange(len(stock)) % 2 == 0):
            assert_same(stock[index], ours[index])
        one, other = stock.storage, ours.storage
        assert one._len == other._len and one._last_cursor.tolist() == other._last_cursor.tolist()
        assert one._last_cursor_index == other._last_cursor_index and other._mutation_revision > revision
        assert stock.writer.state_dict() == ours.writer.state_dict()
    with pytest.raises(IndexError):
        ours.storage.get(torch.tensor([3, len(ours)]))
    before = ours[:].clone()
    ours[torch.arange(len(ours))]["next", "observation"].zero_()
    assert_same(stock[:], before)
    assert_same(ours[:], before)


def test_indices_that_do_not_follow_each_other() -> None:
    stock, ours = LazyTensorStorage(50), TransitionStorage(50)
    for storage in (stock, ours):
        storage.set(torch.arange(10), rows(0, 10))
        storage.set(torch.tensor([3, 9, 4]), rows(70, 73))
        storage.set(torch.tensor([4, 5, 4]), rows(80, 83))
        storage.set(7, rows(90, 91)[0])
    assert_same(stock._storage[:10], ours._storage[:10])


@pytest.mark.parametrize(
    ("name", "value"),
    [("extra", torch.ones(4)), ("action", None), ("action", torch.ones(4, 1)), ("next", torch.ones(4))],
)
def test_rows_of_another_structure_are_torchrl_s_business(name: str, value: torch.Tensor | None) -> None:
    outcomes: list[Any] = []
    for replay in (buffer(50), buffer(50, TransitionStorage)):
        replay.extend(rows(0, 8))
        data = rows(8, 12).exclude(name)
        try:
            replay.extend(data if value is None else data.set(name, value))
            outcomes.append(replay[:].exclude(name if value is None else "none"))  # it was never written
        except Exception as error:
            outcomes.append(type(error))
    one, other = outcomes
    assert one == other if isinstance(one, type) else assert_same(one, other) is None


# -- minibatches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [1, 4])
def test_minibatches_are_the_rows_of_few_samples(stack):
    """Bit for bit those that TorchRL's sample and split give, from the same random numbers."""
    replay = buffer(64, TransitionStorage) if stack == 1 else buffer(64, FrameStackStorage, stack=stack, num_envs=2)
    time = (torch.arange(21)[:, None] + torch.arange(stack) + 1 - stack).clamp(min=0)  # first images repeat
    pixels = time[:, None, :, None, None] + 100 * torch.arange(2)[:, None, None, None]
    frames = pixels.expand(21, 2, stack, 3, 3).byte()
    done = torch.zeros(40, 1, dtype=torch.bool)
    following = {"observation": frames[1:].flatten(0, 1), "done": done, "terminated": done, "truncated": done}
    replay.extend(TensorDict({"observation": frames[:-1].flatten(0, 1), "next": following}, [40]))
    replay._rng.manual_seed(3)
    replay._warned_batch_size_conflict = True
    expected = [minibatch for count in (16, 16, 1) for minibatch in replay.sample(6 * count).split(6)]
    replay._rng.manual_seed(3)
    for one, other in zip(expected, draw_minibatches(replay, 33), strict=True):
        assert_same(one, other)


def test_prioritized_minibatches_see_the_latest_priorities():
    replay = prioritized()
    replay.extend(rows(0, 20))
    batches = draw_minibatches(replay, 2)
    assert next(batches)["index"].unique().numel() > 1
    replay.update_priority(torch.arange(20), (torch.arange(20) == 13).float())
    assert next(batches)["index"].tolist() == [13] * 6


def test_rows_in_time_are_in_the_order_of_the_steps():
    batch = TensorDict({"a": torch.arange(6).reshape(2, 3), "next": {"a": torch.arange(12).reshape(2, 3, 2)}}, [2, 3])
    batch["unused"] = batch["next", "unused"] = torch.zeros(2, 3)
    keys = ["a", ("next", "a"), ("next", "absent"), "absent"]
    found, selected = rows_in_time(batch, keys), select(batch, keys)
    batch = batch.exclude("unused", ("next", "unused"))
    assert_same(found, batch.transpose(0, 1).reshape(-1))
    assert_same(selected, batch)
    assert found["a"].tolist() == [0, 3, 1, 4, 2, 5]


# -- files ----------------------------------------------------------------------------------------------------------


def assert_restored(replay: TensorDictReplayBuffer, restored: TensorDictReplayBuffer, shape: tuple[int, ...]) -> None:
    """Now, and once both have gone on: the cursor, too, is where it was, and so is the largest priority."""
    for _ in range(2):
        assert len(replay) == len(restored) and replay.write_count == restored.write_count
        assert_same(replay.storage._storage[: len(replay)], restored.storage._storage[: len(replay)])
        for each in (replay, restored):
            each._rng.manual_seed(11)
        for _ in range(5):
            assert_same(replay.sample(), restored.sample())  # includes priority_weight
        for each in (replay, restored):
            each.extend(rows(90, 102).reshape(shape))


@pytest.mark.parametrize("writes", [(8,), (8, 7), (13, 13), (20,), (19, 1, 5), (7, 50, 3)])
@pytest.mark.parametrize("bytes_a_file", [40, 2**20])
def test_restored_from_the_rows_written_since_each_save(tmp_path, writes, bytes_a_file, monkeypatch):
    monkeypatch.setattr(replay_chunks, "CHUNK_BYTES", bytes_a_file)
    replay, restored = buffer(), buffer()
    chunks = ReplayChunks(tmp_path / "replay", replay)
    written, state = 0, chunks.save()
    for count in writes:
        for start in range(written, written + count, 4):  # as a collector would
            replay.extend(rows(start, min(start + 4, written + count)))
        written += count
        state = chunks.save()
        chunks.keep_only(state["chunks"])
    names = sorted(path.name for path in (tmp_path / "replay").iterdir())
    assert names == [chunk["file"] for chunk in state["chunks"]]
    assert all(chunk["stop"] > written - 20 for chunk in state["chunks"])  # none of which all is overwritten
    assert (max(chunk["stop"] - chunk["start"] for chunk in state["chunks"]) == 1) == (bytes_a_file == 40)
    ReplayChunks(tmp_path / "replay", restored).load(state)
    assert_restored(replay, restored, (-1,))


def test_two_dimensional_storage(tmp_path):
    replay, restored = buffer(40, ndim=2), buffer(40, ndim=2)
    chunks = ReplayChunks(tmp_path / "replay", replay)
    for start in range(0, 60, 12):
        replay.extend(rows(start, start + 12).reshape(4, 3))
        state = chunks.save()
    ReplayChunks(tmp_path / "replay", restored).load(state)
    assert_restored(replay, restored, (4, 3))


def test_priorities_are_restored_exactly(tmp_path):
    replay, restored = prioritized(), prioritized()
    for start in (0, 9, 18):
        replay.extend(rows(start, start + 9))
        sample = replay.sample()
        sample["td_error"] = torch.rand(6) * 3
        replay.update_tensordict_priority(sample)
    torch.save(ReplayChunks(tmp_path / "replay", replay).save(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    ReplayChunks(tmp_path / "replay", restored).load(state)
    assert_restored(replay, restored, (-1,))


def test_only_new_rows_are_written_and_damage_is_found(tmp_path):
    replay = buffer()
    chunks = ReplayChunks(tmp_path / "replay", replay)
    for start in range(0, 50, 10):
        replay.extend(rows(start, start + 10))
        state = chunks.save()
    names = ["000000000030-000000000040.pt", "000000000040-000000000050.pt"]
    assert [chunk["file"] for chunk in state["chunks"]] == names
    path = tmp_path / "replay" / names[1]
    assert chunks.damaged(state["chunks"]) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert chunks.damaged(state["chunks"]) == path
    path.unlink()
    assert chunks.damaged(state["chunks"]) == path


# -- priorities -----------------------------------------------------------------------------------------------------


PRIORITIES = torch.tensor([0.1, 2.0, 0.5, 0.0, 4.0, 1.0])


def with_priorities(
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
def test_law_of_the_prioritized_draws(alpha: float) -> None:
    drawn = torch.cat([rows["number"] for rows in draw_minibatches(with_priorities(alpha), 2_000)])
    expected = (PRIORITIES + 1e-8) ** alpha
    shares = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(shares, expected / expected.sum(), atol=2e-3, rtol=0)


def test_one_row_from_each_of_equal_masses() -> None:
    replay = with_priorities(0.0, batch_size=6)
    for rows in draw_minibatches(replay, 20):
        assert rows["number"].tolist() == list(range(6))
    assert len(next(draw_minibatches(with_priorities(0.5, batch_size=1), 1))) == 1


def test_each_mass_has_a_random_number_of_its_own() -> None:
    """Three strata of two rows each, drawn independently."""
    seen = {tuple((rows["number"] % 2).tolist()) for rows in draw_minibatches(with_priorities(0.0, batch_size=3), 200)}
    assert len(seen) == 8


def test_weights_undo_the_priorities() -> None:
    """``(N P)^-beta`` over the minibatch's largest: at beta 1 a row counts as often as it should be drawn."""
    replay = with_priorities(0.5, beta=0.7)
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
    replay, counted = with_priorities(alpha, beta), torch.zeros(6)
    replay.update_priority(torch.tensor([3]), torch.tensor([0.3]))
    for rows in draw_minibatches(replay, 1_000):
        counted.index_add_(0, rows["number"], rows["priority_weight"])
    x, y = PRIORITIES.index_put((torch.tensor([3]),), torch.tensor(0.3)).log(), counted.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(exponent, abs=0.01)


def test_new_rows_have_the_largest_priority_so_far() -> None:
    replay = with_priorities(1.0, batch_size=4096)
    replay.extend(TensorDict({"number": torch.tensor([6])}, [1]))
    shares = replay.sample()["number"].bincount(minlength=7) / 4096
    assert shares[6].item() == pytest.approx(shares[4].item(), abs=2e-3) and shares[6] > 0.3


def test_the_trees_are_torchrls() -> None:
    ours, theirs = (with_priorities(0.6, cls=cls) for cls in (StratifiedSampler, PrioritizedSampler))
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
    replay = with_priorities(0.5)
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


def test_a_buffer_has_the_capacity_of_its_storage_and_a_generator_of_its_own():
    storage = LazyTensorStorage(60, ndim=2)
    replay = make_replay(60, 10, storage=storage)
    assert replay.storage is storage and replay.batch_size == 10
    assert replay._rng is not None and replay._rng is not make_replay(60, 10)._rng
    for capacity, sentence in ((50, "that of its storage, 60"), (9, "at least 10")):
        with pytest.raises(UserError, match=f"^algo.replay_capacity must be {sentence}, got {capacity}"):
            make_replay(capacity, 10, storage=storage)
