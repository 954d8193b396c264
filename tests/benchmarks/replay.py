"""What does replay of stacked Atari images cost? Time per sample, bytes per transition; TorchRL's storage and ours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from tests.benchmarks.measure import Table, main, microseconds
from torchrl_reg.lab.learners.frame_stack import FrameStackStorage

NUM_ENVS, STACK, SIDE = 8, 4, 84


def tables(capacity: int = 4_000, samples: int = 50) -> list[Table]:
    """Time per sample of 32, and bytes per transition, of full buffers of ``capacity`` transitions."""
    capacity -= capacity % NUM_ENVS
    storages = LazyTensorStorage(capacity), FrameStackStorage(capacity, stack=STACK, num_envs=NUM_ENVS)
    stock, ours = (TensorDictReplayBuffer(storage=storage, batch_size=32) for storage in storages)
    steps = transitions(capacity + capacity // 4)
    while batch := list(islice(steps, 25)):
        for buffer in (stock, ours):
            buffer.extend(torch.stack(batch).reshape(-1))
    names, title = ("TorchRL's LazyTensorStorage", "FrameStackStorage"), "Replay of 84x84 images, stack 4"
    sampling = [microseconds(buffer.sample, samples) for buffer in (stock, ours)]
    memory = [lambda: stock.storage._storage.bytes() / capacity, lambda: ours.storage.bytes() / capacity]
    return [
        Table(f"{title}: a sample of 32", "us", dict(zip(names, sampling, strict=True))),
        Table(title, "bytes a transition", dict(zip(names, memory, strict=True))),
    ]


def transitions(count: int) -> Iterator[TensorDictBase]:
    """At least ``count`` transitions of random images in time order, step by step; episodes of about 200."""
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(NUM_ENVS, STACK - 1, SIDE, SIDE, dtype=torch.uint8)

    def followed(images: torch.Tensor) -> torch.Tensor:
        new = torch.randint(256, (NUM_ENVS, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return torch.cat([images, new], 1)

    stack = followed(zeros)
    action, reward = torch.zeros(NUM_ENVS, dtype=torch.int64), torch.zeros(NUM_ENVS, 1)
    for _ in range(0, count, NUM_ENVS):
        following = followed(stack[:, 1:])
        done = torch.rand(NUM_ENVS, 1, generator=generator) < 0.005
        after = {"observation": following, "reward": reward, "done": done, "terminated": done}
        yield TensorDict({"observation": stack, "action": action, "next": after}, [NUM_ENVS])
        stack = torch.where(done[..., None, None], followed(zeros), following)


if __name__ == "__main__":
    main(tables)
