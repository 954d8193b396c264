"""Stacks rebuilt from single frames equal the stacks that were written, or the batch is refused."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.objectives import PolyakTargetUpdate, SoftDQNLoss
from torchrl_reg.training.loop.collection import cut_episodes, make_collector
from torchrl_reg.training.loop.frame_stack import FrameStackStorage
from torchrl_reg.training.loop.replay import ReplayChunks, draw_minibatches
from torchrl_reg.training.loop.update import make_update

STACK, NUM_ENVS = 4, 3
CAPACITY = 20 * NUM_ENVS


class Games:
    """Random images in episodes of random length, in batches ``[NUM_ENVS, T]`` as a collector makes them."""

    def __init__(self, padding: str, seed: int = 0) -> None:
        self.padding = padding
        self.generator = torch.Generator().manual_seed(seed)
        self.ages: list[int] = []  # of each transition in order of time
        self.reset()

    def reset(self) -> None:
        self.stacks, self.age = self.first_stacks(), torch.zeros(NUM_ENVS, dtype=torch.int64)

    def images(self) -> torch.Tensor:
        return torch.randint(1, 256, (NUM_ENVS, 1, 2, 3), generator=self.generator).to(torch.uint8)

    def first_stacks(self) -> torch.Tensor:
        newest = self.images().expand(-1, STACK, -1, -1).clone()
        if self.padding == "black":
            newest[:, :-1] = 0
        return newest

    def chance(self, probability: float) -> torch.Tensor:
        return torch.rand(NUM_ENVS, generator=self.generator) < probability

    def step(self) -> TensorDictBase:
        next_stacks = torch.cat([self.stacks[:, 1:], self.images()], 1)
        terminated, truncated = self.chance(0.1), self.chance(0.1)
        done = terminated | truncated
        step = TensorDict(
            {
                "observation": self.stacks,
                "action": torch.randint(5, (NUM_ENVS,), generator=self.generator),
                "next": {
                    "observation": next_stacks,
                    "reward": torch.randn(NUM_ENVS, 1, generator=self.generator),
                    "done": done[:, None],
                    "terminated": terminated[:, None],
                    "truncated": truncated[:, None],
                },
            },
            [NUM_ENVS],
        )
        self.ages += self.age.tolist()
        self.age = torch.where(done, 0, (self.age + 1).clamp(max=STACK))
        self.stacks = torch.where(done[:, None, None, None], self.first_stacks(), next_stacks)
        return step

    def batch(self, steps: int) -> TensorDictBase:
        return torch.stack([self.step() for _ in range(steps)], 1)


def single_frames(**options) -> TensorDictReplayBuffer:
    return replay(FrameStackStorage(CAPACITY, stack=STACK, num_envs=NUM_ENVS), **options)


def stacked(**options) -> TensorDictReplayBuffer:
    return replay(LazyTensorStorage(CAPACITY), **options)


def replay(storage, prioritized: bool = False) -> TensorDictReplayBuffer:
    sampler = PrioritizedSampler(CAPACITY, alpha=0.7, beta=0.5) if prioritized else None
    generator = torch.Generator().manual_seed(7)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=11, generator=generator)


def extend(replays, batch: TensorDictBase) -> None:
    for each in replays:
        each.extend(batch.transpose(0, 1).reshape(-1))


def assert_same(one: TensorDictBase, other: TensorDictBase) -> None:
    keys = set(one.keys(True, True)) - {"index"}
    assert keys == set(other.keys(True, True)) - {"index"}
    assert ("next", "observation") in keys
    for key in keys:
        assert one[key].dtype == other[key].dtype
        assert torch.equal(one[key], other[key]), key


def expected_rows(written: int, ages: list[int]) -> tuple[torch.Tensor, int]:
    """The row that each row of the ring stands for, and how many rows stand for a later one."""
    oldest = max(0, written - CAPACITY)
    rows, lost = torch.zeros(written - oldest, dtype=torch.int64), 0
    for number in range(oldest, written):
        overwritten = number - ages[number] * NUM_ENVS < oldest
        lost += overwritten
        later = number + STACK * NUM_ENVS if overwritten else number
        rows[number % CAPACITY] = later % CAPACITY
    return rows, lost


@pytest.mark.parametrize("padding", ["black", "repeated"])
def test_every_row_comes_back_while_the_ring_turns(padding):
    games, single, plain = Games(padding), single_frames(), stacked()
    written = most_lost = 0
    for turn in range(100):
        batch = games.batch((1, 4, 2, 7, 20)[turn % 5])
        if games.chance(0.2).any():  # as at a checkpoint
            cut_episodes(batch)
            games.reset()
        extend((single, plain), batch)
        written += batch.numel()
        rows, lost = expected_rows(written, games.ages)
        most_lost = max(most_lost, lost)
        every = torch.arange(len(rows))
        assert_same(single.storage.get(every), plain.storage.get(rows))
    assert written > 20 * CAPACITY
    assert 0 < most_lost <= STACK * NUM_ENVS
    # The memory of the starts of episodes has grown, turned, and been given back.
    assert len(single.storage._starts._rows) <= CAPACITY // 2 and single.storage._starts.count > written // 10


@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_row_alone_and_after_a_checkpoint_at_every_step(num_envs, monkeypatch):
    """What is read, kept and given back does not depend on which other rows are asked for, nor on a restart."""
    monkeypatch.setitem(globals(), "NUM_ENVS", num_envs)
    games, single, plain = Games("repeated", seed=1), single_frames(), stacked()
    for step in range(CAPACITY // num_envs + 12):
        extend((single, plain), games.batch(1))
        if step < CAPACITY // num_envs - 1:
            continue
        restored = single_frames()
        restored.load_state_dict(single.state_dict())
        again = single_frames()
        again.load_state_dict(restored.state_dict())
        rows, _ = expected_rows(single.write_count, games.ages)
        expected = plain.storage.get(rows)
        assert_same(torch.cat([single.storage.get(torch.tensor([row])) for row in range(CAPACITY)]), expected)
        assert_same(again[:], expected)


@pytest.mark.gpu
def test_rows_on_a_gpu():
    games, plain = Games("repeated"), stacked()
    on_gpu = replay_on("cuda")
    for _ in range(7):
        extend((on_gpu, plain), games.batch(6))
    rows, _ = expected_rows(plain.write_count, games.ages)
    every, expected = torch.arange(CAPACITY), plain.storage.get(rows)
    assert_same(on_gpu.storage.get(every).cpu(), expected)


def replay_on(device):
    storage = FrameStackStorage(CAPACITY, stack=STACK, num_envs=NUM_ENVS, device=device)
    return TensorDictReplayBuffer(storage=storage, batch_size=11, generator=torch.Generator(device))


def test_any_index():
    games, single, plain = Games("black"), single_frames(), stacked()
    extend((single, plain), games.batch(10))
    mask = torch.arange(30) % 7 == 2
    for index in (5, -1, [2, 20, 2], range(3, 9), slice(4, 30, 5), mask, torch.tensor([[1, 28], [7, 7]])):
        assert_same(single[index], plain[index])
    for index in (30, torch.tensor([3, 30]), torch.tensor([-1])):
        with pytest.raises(IndexError):
            single.storage.get(index)


@pytest.mark.parametrize("prioritized", [False, True])
def test_samples_are_those_of_the_stacked_buffer(prioritized):
    games = Games("black")
    replays = single, plain = single_frames(prioritized=prioritized), stacked(prioritized=prioritized)
    for _ in range(4):
        extend(replays, games.batch(5))
        for one, other in zip(draw_minibatches(single, 3), draw_minibatches(plain, 3), strict=True):
            assert_same(one, other)
            assert torch.equal(one["index"], other["index"])
            for each, minibatch in ((single, one), (plain, other)):
                minibatch["td_error"] = minibatch["next", "reward"].abs() + 0.1
                each.update_tensordict_priority(minibatch)
    weights = one.get("priority_weight", torch.ones(2))
    assert bool(weights.unique().numel() > 1) == prioritized


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("written_steps", [12, 46])
def test_a_restored_buffer_goes_on_like_the_original(tmp_path, prioritized, written_steps):
    games, original = Games("repeated"), single_frames(prioritized=prioritized)
    chunks = ReplayChunks(tmp_path / "replay", original)
    for step in range(written_steps):
        extend([original], games.batch(1))
        if prioritized:
            minibatch = original.sample()
            minibatch["td_error"] = minibatch["next", "reward"].abs()
            original.update_tensordict_priority(minibatch)
        if step % 9 == 8:
            chunks.save()
    state = chunks.save()

    restored = single_frames(prioritized=prioritized)
    ReplayChunks(tmp_path / "replay", restored).load(state)
    ours, theirs = original.storage.counts()["starts"], restored.storage.counts()["starts"]
    assert ours["rows"] == theirs["rows"] and torch.equal(ours["images"], theirs["images"])
    stored, loaded = original.storage._storage, restored.storage._storage
    for key in stored.keys(True, True):
        assert torch.equal(stored[key][: len(original)], loaded[key][: len(original)]), key
    for _ in range(20):
        for each in (original, restored):
            each._rng.manual_seed(3)
        for _ in range(5):
            assert_same(original.sample(), restored.sample())
        extend([original, restored], games.batch(2))  # within the same episodes


@pytest.mark.parametrize("way", ["state_dict", "dumps"])
def test_torchrl_s_own_checkpoints(tmp_path, way):
    games, original, restored = Games("black"), single_frames(), single_frames()
    extend([original], games.batch(20))
    extend([original], games.batch(7))
    if way == "state_dict":
        restored.load_state_dict(original.state_dict())
    else:
        original.dumps(tmp_path)
        restored.loads(tmp_path)
    assert_same(original[:], restored[:])
    extend([original, restored], games.batch(3))
    assert_same(original[:], restored[:])


def test_emptied_and_filled_again():
    games, single, plain = Games("black"), single_frames(), stacked()
    extend((single, plain), games.batch(20))
    extend((single, plain), games.batch(3))
    for each in (single, plain):
        each.empty()
    with pytest.raises(ValueError, match="observation must be rows in order of time"):
        extend([single], games.batch(1))
    games.reset()
    single.empty()
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
    single = replay(FrameStackStorage(800, stack=4, num_envs=2))
    plain = replay(LazyTensorStorage(800))
    ends = {"terminated": 0, "truncated": 0}
    for turn, batch in zip(range(16), collector, strict=False):
        for name in ends:
            ends[name] += int(batch["next", name].sum())
        if turn == 7:  # a checkpoint
            cut_episodes(batch)
            collector.reset()
        keys = ["observation", "action", *(("next", key) for key in ("observation", "reward", "done", "terminated"))]
        extend((single, plain), batch.select(*keys))
    collector.shutdown()
    assert ends["terminated"] >= 1 and ends["truncated"] >= 1, ends
    assert_same(single[:], plain[:])
    # action 8, reward 4, done and terminated 1 each; 4 for the count of its episode and 2 for its history
    assert single.storage._storage.bytes() == 800 * (84 * 84 + 8 + 4 + 2 + 6)
    assert single.storage.bytes() - single.storage._storage.bytes() == 16 * 84 * 84  # at most so many starts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"max_size": 23},
            r"max_size must be a multiple of num_envs=3 and at least 2 \* stack \* num_envs=24, got 23\.",
        ),
        ({"max_size": 25}, r"max_size must be a multiple of num_envs=3 .*, got 25\."),
        ({"stack": 1}, r"stack must be at least 2 frames, got 1\."),
        ({"num_envs": 0}, r"num_envs must be at least 1, got 0\."),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"max_size": 24, "stack": 4, "num_envs": 3} | change
    with pytest.raises(ValueError, match=message):
        FrameStackStorage(arguments.pop("max_size"), **arguments)


def channels_last(batch):
    batch["observation"] = batch["observation"].movedim(-3, -1)


def floats(batch):
    batch["next", "observation"] = batch["next", "observation"].float()


def no_images(batch):
    del batch["observation"]


def skipped_step(batch):
    batch["observation"][1] = batch["observation"][2].clone()
    batch["next", "observation"][1] = batch["next", "observation"][2].clone()


def stale_next(batch):
    batch["next", "observation"][4, 2] += 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (channels_last, r"observation must be uint8 \[B, stack=4, H, W\], got 'torch.uint8 \[12, 2, 3, 4\]'\."),
        (floats, r"\('next', 'observation'\) must be uint8 .*, got 'torch.float32 \[12, 4, 2, 3\]'\."),
        (no_images, r"observation must be uint8 .*, got None\."),
        (skipped_step, r"observation must be rows in order of time .*"),
        (stale_next, r"next observation must be the observation moved on by one frame, .*"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_batches_that_cannot_be_rebuilt_are_refused(spoil, message, empty):
    games, single = Games("black"), single_frames()
    if not empty:
        extend([single], games.batch(3))
    batch = games.batch(4).transpose(0, 1).reshape(-1)
    spoil(batch)
    with pytest.raises(ValueError, match=message):
        single.extend(batch)


def test_rows_out_of_order_are_refused():
    batch = Games("black").batch(4)
    with pytest.raises(ValueError, match="observation must be rows in order of time"):
        single_frames().extend(batch.reshape(-1))  # environment by environment
    with pytest.raises(ValueError, match=r"batch must be whole steps of num_envs=3 .*, got 4\."):
        single_frames().extend(batch[0])
    too_long = Games("black").batch(21)
    with pytest.raises(ValueError, match=r"batch must be .* at most max_size=60, got 63\."):
        extend([single_frames()], too_long)
    single = single_frames()
    extend([single], batch)
    with pytest.raises(
        ValueError, match="cursor must be the rows after those written last, as extend gives them, got slice"
    ):
        single[:12] = batch.transpose(0, 1).reshape(-1)


@pytest.mark.parametrize("written_steps", [5, 33])
@pytest.mark.parametrize("shift", [-NUM_ENVS, 1, NUM_ENVS])
def test_rows_are_written_one_after_another(written_steps, shift):
    games, single = Games("black"), single_frames()
    for _ in range(written_steps):
        extend([single], games.batch(1))
    games.reset()  # whose first stacks alone would fit anywhere
    step = games.batch(1).reshape(-1)
    right = (written_steps * NUM_ENVS + torch.arange(NUM_ENVS)) % CAPACITY
    with pytest.raises(ValueError, match="cursor must be the rows after those written last, got"):
        single.storage.set((right + shift) % CAPACITY, step)
    single.storage.set(right, step)


def test_priorities_go_to_the_rows_that_were_read() -> None:
    """In a buffer that has wrapped, rows whose stacks are overwritten stand for later ones, and keep their priority."""
    storage = FrameStackStorage(CAPACITY, stack=STACK, num_envs=NUM_ENVS)
    sampler = PrioritizedSampler(CAPACITY, alpha=1.0, beta=1.0, eps=0.0)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=40 * CAPACITY, priority_key="td_error")
    games = Games("black")
    for _ in range(30):
        replay.extend(games.step())
    network = nn.Sequential(nn.Flatten(-3), nn.Linear(STACK * 6, 5))
    actor = QValueActor(nn.Sequential(_Scaled(), network), spec=Categorical(5))
    loss = SoftDQNLoss(actor, tau=0.5, loss_function="l2", diagnostics=False).make_value_estimator(gamma=0.9)
    target = PolyakTargetUpdate(loss, rate=0.5)
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), target, replay=replay, device="cpu")
    before = torch.tensor([float(sampler._sum_tree[i]) for i in range(CAPACITY)])
    update(replay.sample())
    after = torch.tensor([float(sampler._sum_tree[i]) for i in range(CAPACITY)])
    every = torch.arange(CAPACITY)
    lost = storage.rows_returned(every) != every
    assert lost.any() and torch.equal(after[lost], before[lost])
    alone = storage.get(every[~lost])
    loss(alone)
    torch.testing.assert_close(after[~lost], alone["td_error"].squeeze(-1))


class _Scaled(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255
