"""Stacks rebuilt from single frames equal the stacks that were written, or the batch is refused.

The first images of episodes stay what they were while their memory turns and grows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.learners.frame_stack import EpisodeStarts, FrameStackStorage
from torchrl_reg.lab.learners.update import make_update
from torchrl_reg.lab.run.collection import make_collector, truncate_episodes
from torchrl_reg.lab.run.replay_chunks import ReplayChunks
from torchrl_reg.objectives import PolyakTargetUpdate, SoftDQNLoss

STACK, CAPACITY = 4, 60


class Games:
    """Random images in episodes of random length, in batches ``[num_envs, T]`` as a collector makes them."""

    def __init__(self, padding: str, num_envs: int = 3) -> None:
        self.padding, self.num_envs = padding, num_envs
        self.generator = torch.Generator().manual_seed(0)
        self.ages: list[int] = []  # of each transition in order of time
        self.reset()

    def reset(self) -> None:
        self.stacks, self.age = self.first_stacks(), torch.zeros(self.num_envs, dtype=torch.int64)

    def images(self) -> torch.Tensor:
        return torch.randint(1, 256, (self.num_envs, 1, 2, 3), generator=self.generator).to(torch.uint8)

    def first_stacks(self) -> torch.Tensor:
        newest = self.images().expand(-1, STACK, -1, -1).clone()
        if self.padding == "black":
            newest[:, :-1] = 0
        return newest

    def chance(self, probability: float) -> torch.Tensor:
        return torch.rand(self.num_envs, 1, generator=self.generator) < probability

    def step(self) -> TensorDictBase:
        next_stacks = torch.cat([self.stacks[:, 1:], self.images()], 1)
        terminated, truncated = self.chance(0.1), self.chance(0.1)
        done, reward = terminated | truncated, torch.randn(self.num_envs, 1, generator=self.generator)
        following = {"observation": next_stacks, "reward": reward, "done": done}
        following |= {"terminated": terminated, "truncated": truncated}
        state = {"observation": self.stacks, "action": torch.arange(self.num_envs) % 5}
        self.ages += self.age.tolist()
        self.age = torch.where(done[:, 0], 0, (self.age + 1).clamp(max=STACK))
        self.stacks = torch.where(done[..., None, None], self.first_stacks(), next_stacks)
        return TensorDict({**state, "next": following}, [self.num_envs])

    def batch(self, steps: int) -> TensorDictBase:
        return torch.stack([self.step() for _ in range(steps)], 1)


def single_frames(num_envs: int = 3, device: str = "cpu") -> TensorDictReplayBuffer:
    return replay(FrameStackStorage(CAPACITY, stack=STACK, num_envs=num_envs, device=device))


def stacked() -> TensorDictReplayBuffer:
    return replay(LazyTensorStorage(CAPACITY))


def replay(storage: Any) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=storage, batch_size=11, generator=torch.Generator(storage.device))


def extend(replays: Any, batch: TensorDictBase) -> None:
    for each in replays:
        each.extend(batch.transpose(0, 1).reshape(-1))


def assert_same(one: TensorDictBase, other: TensorDictBase) -> None:
    expected = one.exclude("index").to_dict()
    assert "observation" in expected["next"]
    torch.testing.assert_close(other.exclude("index").to_dict(), expected, rtol=0, atol=0)


def expected_rows(games: Games) -> tuple[torch.Tensor, int]:
    """The row returned for each row of the ring, and the number of rows replaced by a later one."""
    written = len(games.ages)
    oldest = max(0, written - CAPACITY)
    rows, lost = torch.zeros(written - oldest, dtype=torch.int64), 0
    for number in range(oldest, written):
        overwritten = number - games.ages[number] * games.num_envs < oldest
        lost += overwritten
        rows[number % CAPACITY] = (number + overwritten * STACK * games.num_envs) % CAPACITY
    return rows, lost


@pytest.mark.parametrize("padding", ["black", "repeated"])
def test_every_row_comes_back_while_the_ring_turns(padding):
    games, single, plain, most_lost = Games(padding), single_frames(), stacked(), 0
    for turn in range(100):
        batch = games.batch((1, 4, 2, 7, 20)[turn % 5])
        if games.chance(0.2).any():  # as at a checkpoint
            truncate_episodes(batch)
            games.reset()
        extend((single, plain), batch)
        rows, lost = expected_rows(games)
        most_lost = max(most_lost, lost)
        assert_same(single.storage.get(torch.arange(len(rows))), plain.storage.get(rows))
    written = len(games.ages)
    assert written > 20 * CAPACITY and 0 < most_lost <= STACK * 3
    # The memory of the starts of episodes has grown, turned, and been given back.
    assert len(single.storage._starts._rows) <= CAPACITY // 2 and single.storage._starts.count > written // 10


@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_row_alone_and_after_a_checkpoint_at_every_step(num_envs):
    """Results do not depend on the other rows of the index, nor on a restart."""
    games, single, plain = Games("repeated", num_envs), single_frames(num_envs), stacked()
    for step in range(CAPACITY // num_envs + 12):
        extend((single, plain), games.batch(1))
        if step < CAPACITY // num_envs - 1:
            continue
        restored, again = single_frames(num_envs), single_frames(num_envs)
        restored.load_state_dict(single.state_dict())
        again.load_state_dict(restored.state_dict())
        expected = plain.storage.get(expected_rows(games)[0])
        assert_same(torch.cat([single.storage.get(torch.tensor([row])) for row in range(CAPACITY)]), expected)
        assert_same(again[:], expected)


@pytest.mark.gpu
def test_rows_on_a_gpu():
    games, plain, on_gpu = Games("repeated"), stacked(), single_frames(device="cuda")
    for _ in range(7):
        extend((on_gpu, plain), games.batch(6))
    expected = plain.storage.get(expected_rows(games)[0])
    assert_same(on_gpu.storage.get(torch.arange(CAPACITY)).cpu(), expected)


def test_any_index():
    games, single, plain = Games("black"), single_frames(), stacked()
    extend((single, plain), games.batch(10))
    mask = torch.arange(30) % 7 == 2
    for index in (5, -1, [2, 20, 2], range(3, 9), slice(4, 30, 5), mask, torch.tensor([[1, 28], [7, 7]])):
        assert_same(single[index], plain[index])
    for index in (30, torch.tensor([3, 30]), torch.tensor([-1])):
        with pytest.raises(IndexError):
            single.storage.get(index)


@pytest.mark.parametrize("way", ["state_dict", "dumps", "chunks"])
@pytest.mark.parametrize("written_steps", [12, 46])
def test_a_restored_buffer_goes_on_like_the_original(tmp_path, way, written_steps):
    games, original, restored = Games("repeated"), single_frames(), single_frames()
    chunks = ReplayChunks(tmp_path / "replay", original)
    for step in range(written_steps):
        extend([original], games.batch(1))
        if step % 9 == 8:
            chunks.save()
    if way == "state_dict":
        restored.load_state_dict(original.state_dict())
    elif way == "dumps":
        original.dumps(tmp_path)
        restored.loads(tmp_path)
    else:
        ReplayChunks(tmp_path / "replay", restored).load(chunks.save())
    for _ in range(20):
        counts = [each.storage.counts()["starts"] for each in (original, restored)]
        torch.testing.assert_close(*[{"rows": each["rows"], "images": each["images"]} for each in counts])
        stored = [each.storage._storage[: len(original)].to_dict() for each in (original, restored)]
        torch.testing.assert_close(*stored, rtol=0, atol=0)
        for each in (original, restored):
            each._rng.manual_seed(3)
        assert_same(original.sample(), restored.sample())
        extend([original, restored], games.batch(2))  # within the same episodes


def test_emptied_and_filled_again():
    games, single, plain = Games("black"), single_frames(), stacked()
    for steps in (20, 3):
        extend((single, plain), games.batch(steps))
    single.empty(), plain.empty()
    with pytest.raises(ValueError, match="observation must be rows in order of time"):
        extend([single], games.batch(1))
    games.reset(), single.empty()
    extend((single, plain), games.batch(6))
    assert_same(single[:], plain[:])


def test_breakout_comes_back_and_takes_one_frame_a_transition():
    env = make_env(EnvSettings("atari", game="breakout", max_episode_frames=600), 2)
    env.set_seed(0)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    # 25 steps of two games, four frames each
    options = {"frames_per_batch": 200, "frames_per_step": 4, "device": cpu, "storing_device": cpu}
    collector = make_collector(env, env.rand_action, **options, track_trajectories=False)
    single, plain = replay(FrameStackStorage(800, stack=4, num_envs=2)), replay(LazyTensorStorage(800))
    ends = {"terminated": 0, "truncated": 0}
    for turn, batch in zip(range(16), collector, strict=False):
        for name in ends:
            ends[name] += int(batch["next", name].sum())
        if turn == 7:  # a checkpoint
            truncate_episodes(batch)
            collector.reset()
        keys = ["observation", "action", *(("next", key) for key in ("observation", "reward", "done", "terminated"))]
        extend((single, plain), batch.select(*keys))
    collector.shutdown()
    assert ends["terminated"] >= 1 and ends["truncated"] >= 1, ends
    assert_same(single[:], plain[:])
    # action 8, reward 4, done and terminated 1 each; 4 for the count of its episode and 2 for its history
    assert single.storage._storage.bytes() == 800 * (84 * 84 + 8 + 4 + 2 + 6)
    assert single.storage.bytes() - single.storage._storage.bytes() == 16 * 84 * 84  # upper bound of the starts


@pytest.mark.parametrize(
    ("max_size", "stack", "num_envs", "message"),
    [
        (23, 4, 3, r"max_size must be a multiple of num_envs=3 and at least 2 \* stack \* num_envs=24, got 23\."),
        (25, 4, 3, r"max_size must be a multiple of num_envs=3 .*, got 25\."),
        (24, 1, 3, r"stack must be at least 2 frames, got 1\."),
        (24, 4, 0, r"num_envs must be at least 1, got 0\."),
    ],
)
def test_bad_arguments(max_size, stack, num_envs, message):
    with pytest.raises(ValueError, match=message):
        FrameStackStorage(max_size, stack=stack, num_envs=num_envs)


def skipped_step(batch):
    batch["observation"][:, 1] = batch["observation"][:, 2].clone()
    batch["next", "observation"][:, 1] = batch["next", "observation"][:, 2].clone()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda batch: batch.set("observation", batch["observation"].movedim(-3, -1)),
            r"observation must be uint8 \[B, stack=4, H, W\], got 'torch.uint8 \[12, 2, 3, 4\]'\.",
        ),
        (
            lambda batch: batch.set(("next", "observation"), batch["next", "observation"].float()),
            r"\('next', 'observation'\) must be uint8 .*, got 'torch.float32 \[12, 4, 2, 3\]'\.",
        ),
        (lambda batch: batch.pop("observation"), r"observation must be uint8 .*, got None\."),
        (skipped_step, r"observation must be rows in order of time .*"),
        (
            lambda batch: batch["next", "observation"][2, 1, 2].add_(1),
            r"next observation must be the observation shifted by one frame, .*",
        ),
        (lambda batch: batch.transpose(0, 1).reshape(3, 4), "observation must be rows in order of time"),
        (lambda batch: batch[:2], r"batch must be whole steps of num_envs=3 .*, got 8\."),
        (lambda batch: batch.repeat(1, 6)[:, :21], r"batch must be .* at most max_size=60, got 63\."),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_batches_that_cannot_be_rebuilt_are_refused(spoil, message, empty):
    games, single = Games("black"), single_frames()
    if not empty:
        extend([single], games.batch(3))
    batch = games.batch(4).contiguous()
    changed = spoil(batch)
    with pytest.raises(ValueError, match=message):
        extend([single], changed if isinstance(changed, TensorDictBase) else batch)


@pytest.mark.parametrize("written_steps", [5, 33])
def test_rows_are_written_one_after_another(written_steps):
    games, single = Games("black"), single_frames()
    for _ in range(written_steps):
        extend([single], games.batch(1))
    games.reset()  # whose first stacks alone would fit anywhere
    step = games.batch(1).reshape(-1)
    right, sentence = (written_steps * 3 + torch.arange(3)) % CAPACITY, "cursor must be the rows after those written"
    for shift in (-3, 1, 3):
        with pytest.raises(ValueError, match=f"{sentence} last, got"):
            single.storage.set((right + shift) % CAPACITY, step)
    with pytest.raises(ValueError, match=f"{sentence} last, as passed by extend, got slice"):
        single[:3] = step
    single.storage.set(right, step)


class Scaled(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255


def test_priorities_go_to_the_rows_that_were_read() -> None:
    """In a full ring, rows with overwritten stacks are replaced by later ones, and keep their priority."""
    storage = FrameStackStorage(CAPACITY, stack=STACK, num_envs=3)
    sampler = PrioritizedSampler(CAPACITY, alpha=1.0, beta=1.0, eps=0.0)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=40 * CAPACITY, priority_key="td_error")
    games, every = Games("black"), torch.arange(CAPACITY)
    for _ in range(30):
        replay.extend(games.step())
    actor = QValueActor(nn.Sequential(Scaled(), nn.Flatten(-3), nn.Linear(STACK * 6, 5)), spec=Categorical(5))
    loss = SoftDQNLoss(actor, tau=0.5, loss_function="l2", diagnostics=False).make_value_estimator(gamma=0.9)
    target = PolyakTargetUpdate(loss, rate=0.5)
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), target, replay=replay)
    before = torch.as_tensor(sampler._sum_tree[every]).clone()
    update(replay.sample())
    after = torch.as_tensor(sampler._sum_tree[every])
    lost = storage.rows_returned(every) != every
    assert lost.any() and torch.equal(after[lost], before[lost])
    alone = storage.get(every[~lost])
    loss(alone)
    torch.testing.assert_close(after[~lost], alone["td_error"].squeeze(-1))


def images(first: int, stop: int) -> torch.Tensor:
    return (torch.arange(first, stop) % 251).to(torch.uint8)[:, None, None].expand(-1, 2, 3)


def test_images_survive_growth_and_turning() -> None:
    starts, other, first = EpisodeStarts(torch.device("cpu")), EpisodeStarts(torch.device("cpu")), 0
    sizes = (3, 9, 1, 7, 30, 0, 2, 60, 5, 11)
    for turn, size in enumerate(sizes):
        count = starts.count
        starts.append(images(count, count + size), range(10 * count, 10 * (count + size), 10))
        if turn % 3 == 2:
            first = starts.count // 2
            starts.drop_before(10 * first)  # that one is kept
        kept = torch.arange(first, starts.count)
        assert torch.equal(starts.images(kept), images(first, starts.count))
    assert starts.count == sum(sizes)
    assert starts.bytes() <= 2 * 6 * starts.count

    half = 10 * (first + 20)
    other.load(starts.between(0, half))
    other.load(starts.between(half, 10_000))
    assert other.count == starts.count
    assert torch.equal(other.images(kept), starts.images(kept))
