"""What does ``run.compile`` gain on CartPole? The time to compile, mostly from PyTorch's cache, is not counted."""

from __future__ import annotations

from tests.benchmarks.cartpole import RATIOS, STARTS, by_hand, ours, title
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import Size


def tables(frames: int = 12_000, device: str = "cpu") -> list[Table]:
    """Steps/s on CartPole with compiled updates; one table per ratio of updates to frames."""
    return [_table(Size(frames, STARTS, every, batch, device)) for every, batch in RATIOS]


def _table(size: Size) -> Table:
    compiled = {f"recipes/m_dqn.py compiled, {n} environments": ours(size, n, compile=True) for n in (8, 32)}
    return Table(title(size), "steps/s", by_hand(size) | compiled)


if __name__ == "__main__":
    main(tables)
