"""The first images of episodes stay what they were while their memory turns and grows."""

from __future__ import annotations

import torch

from torchrl_reg.training.loop.episode_starts import EpisodeStarts


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
