"""Replay of stacked Atari images: time per sample and bytes per transition, stock TorchRL storage and ours."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import TensorStorage

from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.training.loop.frame_stack import FrameStackStorage

NUM_ENVS, STACK, SIDE = 8, 4, 84


def replay_tables(capacity: int = 4_000, samples: int = 50) -> list[Table]:
    """Time per sample of 32, and bytes per transition, of full buffers of ``capacity`` transitions."""
    capacity -= capacity % NUM_ENVS
    stock = _buffer(LazyTensorStorage(capacity))
    ours_storage = FrameStackStorage(capacity, stack=STACK, num_envs=NUM_ENVS)
    ours = _buffer(ours_storage)
    for batch in transitions(capacity + capacity // 4):
        stock.extend(batch)
        ours.extend(batch)
    names = "TorchRL's LazyTensorStorage", "FrameStackStorage"

    def sampling(replay: TensorDictReplayBuffer) -> float:
        start = time.perf_counter()
        for _ in range(samples):
            replay.sample()
        return 1e6 * (time.perf_counter() - start) / samples

    return [
        Table(
            "Replay of 84x84 images, stack 4: a sample of 32",
            "us",
            [Case(names[0], lambda: sampling(stock), names[0]), Case(names[1], lambda: sampling(ours), names[0])],
        ),
        Table(
            "The same: memory",
            "bytes a transition",
            [
                Case(names[0], lambda: stock.storage._storage.bytes() / capacity, names[0]),
                Case(names[1], lambda: ours_storage.bytes() / capacity, names[0]),
            ],
        ),
    ]


def transitions(count: int, seed: int = 0) -> Iterator[TensorDictBase]:
    """At least ``count`` transitions of random images in time order, 25 steps per batch; episodes of about 200."""
    generator = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        return torch.randint(256, (NUM_ENVS, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)

    def beginning() -> torch.Tensor:
        black = torch.zeros(NUM_ENVS, STACK - 1, SIDE, SIDE, dtype=torch.uint8)
        return torch.cat([black, images()], 1)

    stack = beginning()
    for _ in range(0, count, 25 * NUM_ENVS):
        steps = []
        for _ in range(25):
            following = torch.cat([stack[:, 1:], images()], 1)
            done = torch.rand(NUM_ENVS, 1, generator=generator) < 0.005
            after = {"observation": following, "reward": torch.zeros(NUM_ENVS, 1), "done": done, "terminated": done}
            action = torch.zeros(NUM_ENVS, dtype=torch.int64)
            steps.append(TensorDict({"observation": stack, "action": action, "next": after}, [NUM_ENVS]))
            stack = torch.where(done[..., None, None], beginning(), following)
        yield torch.stack(steps).reshape(-1)


def _buffer(storage: TensorStorage) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=storage, batch_size=32)
