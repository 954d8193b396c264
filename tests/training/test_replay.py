from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler, RandomSampler

from torchrl_reg.training.loop import replay as replay_module
from torchrl_reg.training.loop.frame_stack import FrameStackStorage
from torchrl_reg.training.loop.replay import ReplayChunks, TransitionStorage, draw_minibatches, rows_in_time


def _replay(capacity=20, *, ndim=1, sampler=None, seed=3) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity, ndim=ndim),
        sampler=sampler or RandomSampler(),
        batch_size=6,
        generator=torch.Generator().manual_seed(seed),
    )


def _transitions(start: int, stop: int) -> TensorDict:
    rows = torch.arange(start, stop)
    return TensorDict(
        {"observation": rows.float().unsqueeze(-1) / 7, ("next", "done"): (rows % 3 == 0)},
        batch_size=[stop - start],
    )


def _assert_same_buffer(one: TensorDictReplayBuffer, other: TensorDictReplayBuffer) -> None:
    assert len(one) == len(other)
    assert one.write_count == other.write_count
    assert (one.storage._storage[: len(one)] == other.storage._storage[: len(one)]).all()
    for buffer in (one, other):
        buffer._rng.manual_seed(11)
    for _ in range(5):
        assert (one.sample() == other.sample()).all()


@pytest.mark.parametrize("writes", [(8,), (8, 7), (13, 13), (20,), (19, 1, 5), (7, 50, 3)])
def test_restored_from_the_rows_written_since_each_save(tmp_path, writes):
    replay, chunks = _replay(), None
    chunks = ReplayChunks(tmp_path / "replay", replay)
    written, state = 0, chunks.save()
    for rows in writes:
        for start in range(written, written + rows, 4):  # as a collector would
            replay.extend(_transitions(start, min(start + 4, written + rows)))
        written += rows
        state = chunks.save()
        chunks.keep_only(state["chunks"])

    restored = _replay()
    ReplayChunks(tmp_path / "replay", restored).load(state)
    _assert_same_buffer(replay, restored)
    for buffer in (replay, restored):  # the cursor, too, is where it was
        buffer.extend(_transitions(written, written + 9))
    _assert_same_buffer(replay, restored)


def test_only_new_rows_are_written_and_overwritten_files_go(tmp_path):
    replay = _replay(capacity=20)
    chunks = ReplayChunks(tmp_path / "replay", replay)
    names = []
    for start in range(0, 50, 10):
        replay.extend(_transitions(start, start + 10))
        state = chunks.save()
        chunks.keep_only(state["chunks"])
        names.append(sorted(path.name for path in (tmp_path / "replay").iterdir()))
    assert names[0] == ["000000000000-000000000010.pt"]
    assert names[-1] == ["000000000030-000000000040.pt", "000000000040-000000000050.pt"]


def test_large_buffers_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_module, "CHUNK_BYTES", 40)
    replay = _replay()
    replay.extend(_transitions(0, 11))
    state = ReplayChunks(tmp_path / "replay", replay).save()
    assert len(state["chunks"]) == 4  # 13 bytes a row, the index included
    restored = _replay()
    ReplayChunks(tmp_path / "replay", restored).load(state)
    _assert_same_buffer(replay, restored)


def test_two_dimensional_storage(tmp_path):
    replay = _replay(40, ndim=2)
    chunks = ReplayChunks(tmp_path / "replay", replay)
    for start in range(0, 60, 12):
        replay.extend(_transitions(start, start + 12).reshape(4, 3))
        state = chunks.save()
    restored = _replay(40, ndim=2)
    ReplayChunks(tmp_path / "replay", restored).load(state)
    _assert_same_buffer(replay, restored)


def test_priorities_are_restored_exactly(tmp_path):
    replay = _replay(sampler=PrioritizedSampler(20, 0.6, 0.4))
    for start in (0, 9, 18):
        replay.extend(_transitions(start, start + 9))
        sample = replay.sample()
        sample["td_error"] = torch.rand(6) * 3
        replay.update_tensordict_priority(sample)
    state = ReplayChunks(tmp_path / "replay", replay).save()
    torch.save(state, tmp_path / "state.pt")

    restored = _replay(sampler=PrioritizedSampler(20, 0.6, 0.4))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    ReplayChunks(tmp_path / "replay", restored).load(state)
    _assert_same_buffer(replay, restored)  # samples include priority_weight
    for buffer in (replay, restored):  # new rows get the largest priority seen so far
        buffer.extend(_transitions(27, 32))
    _assert_same_buffer(replay, restored)


def test_damage_is_found(tmp_path):
    replay = _replay()
    replay.extend(_transitions(0, 10))
    chunks = ReplayChunks(tmp_path / "replay", replay)
    (chunk,) = chunks.save()["chunks"]
    path = tmp_path / "replay" / chunk["file"]
    assert chunks.damaged([chunk]) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert chunks.damaged([chunk]) == path
    path.unlink()
    assert chunks.damaged([chunk]) == path


def test_minibatches_have_the_size_and_come_from_the_buffer():
    replay = _replay()
    replay.extend(_transitions(0, 20))
    batches = list(draw_minibatches(replay, 37))
    assert len(batches) == 37
    assert {batch.batch_size for batch in batches} == {torch.Size([6])}
    drawn = torch.cat(batches)
    assert (drawn["observation"].squeeze(-1) * 7).round().long().tolist() == drawn["index"].tolist()
    counts = torch.bincount(drawn["index"], minlength=20)
    assert counts.min() > 0


def test_prioritized_minibatches_see_the_latest_priorities():
    replay = _replay(sampler=PrioritizedSampler(20, 1.0, 0.4))
    replay.extend(_transitions(0, 20))
    batches = draw_minibatches(replay, 2)
    first = next(batches)
    priorities = torch.zeros(20)
    priorities[13] = 1.0
    replay.update_priority(torch.arange(20), priorities)
    assert next(batches)["index"].tolist() == [13] * 6
    assert len(set(first["index"].tolist())) > 1


@pytest.mark.parametrize("stack", [1, 4])
def test_minibatches_are_the_rows_of_one_sample(stack):
    """Bit for bit those that TorchRL's sample and split give, from the same random numbers."""
    storage = TransitionStorage(64) if stack == 1 else FrameStackStorage(64, stack=stack, num_envs=2)
    replay = TensorDictReplayBuffer(storage=storage, batch_size=8, generator=torch.Generator())
    time = (torch.arange(21)[:, None] + torch.arange(stack) + 1 - stack).clamp(min=0)  # first images repeat
    pixels = time[:, None, :, None, None] + 100 * torch.arange(2)[:, None, None, None]
    frames = pixels.expand(21, 2, stack, 3, 3).byte()
    done = torch.zeros(40, 1, dtype=torch.bool)
    following = {"observation": frames[1:].flatten(0, 1), "done": done, "terminated": done, "truncated": done}
    replay.extend(TensorDict({"observation": frames[:-1].flatten(0, 1), "next": following}, [40]))
    replay._rng.manual_seed(3)
    replay._warned_batch_size_conflict = True
    expected = replay.sample(24).split(8)
    replay._rng.manual_seed(3)
    found = list(draw_minibatches(replay, 3))
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        assert one.batch_size == other.batch_size and set(one.keys(True, True)) == set(other.keys(True, True))
        assert all(torch.equal(one[key], other[key]) for key in one.keys(True, True))


def test_rows_in_time_are_in_the_order_of_the_steps():
    batch = TensorDict({"a": torch.arange(6).reshape(2, 3), "next": {"a": torch.arange(12).reshape(2, 3, 2)}}, [2, 3])
    rows = rows_in_time(batch, ["a", ("next", "a"), ("next", "absent"), "absent"])
    expected = batch.transpose(0, 1).reshape(-1)
    assert rows["a"].tolist() == [0, 3, 1, 4, 2, 5] and torch.equal(rows["next", "a"], expected["next", "a"])
    assert rows.batch_size == expected.batch_size and set(rows.keys(True, True)) == {"a", ("next", "a")}
