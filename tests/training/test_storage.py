"""The storage of transitions holds and gives what TorchRL's does."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_reg.training.loop.replay import TransitionStorage


def rows(count: int, start: int = 0) -> TensorDict:
    numbers = torch.arange(start, start + count)
    images = (numbers[:, None, None] + torch.arange(6).view(2, 3)).to(torch.uint8)
    following = {"observation": images + 1, "done": (numbers % 5 == 0).unsqueeze(-1)}
    return TensorDict({"observation": images, "action": numbers % 3, "next": following}, [count])


def buffers(capacity: int = 50) -> list[TensorDictReplayBuffer]:
    storages = [kind(capacity) for kind in (LazyTensorStorage, TransitionStorage)]
    return [TensorDictReplayBuffer(storage=s, batch_size=16, generator=torch.Generator()) for s in storages]


def same(one: TensorDict, other: TensorDict) -> bool:
    keys = set(one.keys(True, True))
    alike = keys == set(other.keys(True, True)) and one.batch_size == other.batch_size and one.device == other.device
    return alike and all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in keys)


@pytest.mark.parametrize("sizes", [[8] * 20, [50, 50], [1, 49, 7, 50, 3], [60]], ids=str)
def test_samples_are_those_of_torchrl(sizes: list[int]) -> None:
    stock, ours = buffers()
    written = 0
    for size in sizes:
        for replay in (stock, ours):
            replay.extend(rows(size, written))
            replay._rng.manual_seed(written)
        written += size
        assert same(stock.sample(), ours.sample()) and len(stock) == len(ours)
        for index in (slice(3, 9), 0, torch.tensor([0]), -1, torch.tensor([-1]), torch.arange(len(stock)) % 2 == 0):
            assert same(stock[index], ours[index])
    assert same(stock[:], ours[:])


def test_indices_that_do_not_follow_each_other() -> None:
    stock, ours = (replay.storage for replay in buffers())
    for storage in (stock, ours):
        storage.set(torch.arange(10), rows(10))
        storage.set(torch.tensor([3, 9, 4]), rows(3, 70))
        storage.set(torch.tensor([4, 5, 4]), rows(3, 80))
        storage.set(7, rows(1, 90)[0])
    assert same(stock._storage[:10], ours._storage[:10])


def test_rows_that_were_not_written() -> None:
    _, ours = buffers()
    ours.extend(rows(8))
    with pytest.raises(IndexError):
        ours[torch.tensor([3, 8])]


def test_samples_are_copies() -> None:
    _, ours = buffers()
    ours.extend(rows(8))
    before = ours[:].clone()
    ours[torch.arange(8)]["next", "observation"].zero_()
    assert same(ours[:], before)


def test_a_write_leaves_behind_what_torchrl_s_does() -> None:
    """Cursor, length and revision; also around the end of the ring, where entries of one write lie apart."""
    stock, ours = buffers()
    for size in (30, 15, 12, 50):
        for replay in (stock, ours):
            replay.extend(rows(size))
        one, other = stock.storage, ours.storage
        assert one._len == other._len and one._last_cursor.tolist() == other._last_cursor.tolist()
        assert one._last_cursor_index == other._last_cursor_index
        assert stock.writer.state_dict() == ours.writer.state_dict()
    before = ours.storage._mutation_revision
    ours.extend(rows(3))
    assert ours.storage._mutation_revision > before


@pytest.mark.parametrize("change", ["more", "fewer", "shape", "kind"])
def test_rows_of_another_structure_are_torchrl_s_business(change: str) -> None:
    outcomes = []
    for replay in buffers():
        replay.extend(rows(8))
        data = rows(4, 8)
        if change == "more":
            data["extra"] = torch.ones(4)
        elif change == "fewer":
            del data["action"]
        elif change == "shape":
            data["action"] = data["action"].unsqueeze(-1)
        else:
            data["next"] = torch.ones(4)
        try:
            replay.extend(data)
            outcomes.append(replay[:].exclude("action" if change == "fewer" else "none"))  # it was never written
        except Exception as error:
            outcomes.append(type(error))
    one, other = outcomes
    assert one == other if isinstance(one, type) else same(one, other)
