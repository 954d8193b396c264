"""What does ``run.compile`` gain on CartPole? The time to compile, mostly from PyTorch's cache, is not counted."""

from __future__ import annotations

from tests.benchmarks.cartpole import RATIOS, STARTS, by_hand, ours, table
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import Size


def tables(frames: int = 12_000, device: str = "cpu") -> list[Table]:
    """Steps/s on CartPole with compiled updates; one table per ratio of updates to frames."""
    sizes = [Size(frames, STARTS, *ratio, device) for ratio in RATIOS]
    name = "recipes/m_dqn.py compiled, {} environments"
    return [table(s, by_hand(s) | {name.format(n): ours(s, n, compile=True) for n in (8, 32)}) for s in sizes]


if __name__ == "__main__":
    main(tables)
