"""The first images of episodes stay what they were while their memory turns and grows."""

from __future__ import annotations

import torch

from torchrl_reg.training.loop.episode_starts import EpisodeStarts


def image(count: int) -> torch.Tensor:
    return torch.full((2, 3), count % 251, dtype=torch.uint8)


def test_images_survive_growth_and_turning() -> None:
    starts, first = EpisodeStarts(torch.device("cpu")), 0
    sizes = (3, 9, 1, 7, 30, 0, 2, 60, 5, 11)
    for turn, size in enumerate(sizes):
        count = starts.count
        images = torch.stack([image(count + i) for i in range(size)]) if size else torch.empty(0, 2, 3)
        starts.append(images, [10 * (count + i) for i in range(size)])
        if turn % 3 == 2:
            first = starts.count // 2
            starts.drop_before(10 * first)  # that one is kept
        kept = torch.arange(first, starts.count)
        assert torch.equal(starts.images(kept), torch.stack([image(int(i)) for i in kept]))
    assert starts.count == sum(sizes)
    assert starts.bytes() <= 2 * 6 * starts.count

    half = 10 * (first + 20)
    other = EpisodeStarts(torch.device("cpu"))
    other.load(starts.between(0, half))
    other.load(starts.between(half, 10_000))
    assert other.count == starts.count
    assert torch.equal(other.images(kept), starts.images(kept))
